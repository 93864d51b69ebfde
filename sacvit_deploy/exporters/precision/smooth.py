"""Even out the channels that a linear layer takes in, before INT8.

Xiao et al., "SmoothQuant" (ICML 2023), Eq. 3 and 4: a few channels of a transformer are many times
as large as the others, and take most of the 8 bits. Dividing channel j of the input by s_j and
multiplying row j of the weight by it computes the same, with ranges that are easier on both. The
division is written into what made the channel: the LayerNormalization before, or the value part of
`attn.qkv`, through which attention only mixes tokens.

Behind GELU there is nothing that could take it in, so there it is a product of its own, and has to
be worth it. What comes out of GELU lies almost wholly on one side of zero, where a scale that is
the same for both signs leaves half of its levels unused; so there each channel is also moved to the
middle of its range, and the bias of the layer makes up for it (Wei et al., "Outlier Suppression+",
EMNLP 2023, Eq. 3).

How far the weight takes over, the alpha of Eq. 4, is chosen for each layer by the error that
rounding is to be expected to leave in its output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from sacvit_deploy.comparison.graphs import constants, linear_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from sacvit_deploy.exporters.precision.ranges import Channels
    from sacvit_deploy.spec import Role

    Array = NDArray[Any]

STRENGTHS = (0.5, 0.65, 0.8, 0.9, 1.0)
_SMALLEST = 1e-5
# No channel is enlarged more than so many times against another: a dead one has nothing to gain,
# and half precision overflows.
_MOST_APART = 1e3
_WORTH_A_PRODUCT = 2.0
# Of the squared error of a weight rounded to nearest, what `rounding` leaves, as measured.
_LEFT_BY_ROUNDING = 0.25


@dataclass(frozen=True)
class Smoothable:
    """A linear layer whose input channels can be scaled.

    Attributes:
        linear: Its MatMul.
        place: Where it stands, the same in every graph that shares its weights.
        norm: The LayerNormalization that makes its input, with constant scale and bias; None where
            something else does.
        qkv: For `attn.proj`, the MatMul whose value part its input mixes; None for the others.
    """

    linear: onnx.NodeProto
    place: str
    norm: onnx.NodeProto | None
    qkv: onnx.NodeProto | None

    @property
    def has_own_product(self) -> bool:
        """Whether nothing before it can take the division in."""
        return self.norm is None and self.qkv is None


@dataclass(frozen=True)
class Smoothing:
    """What was done to a layer: it takes in (x - centre) / factor.

    Attributes:
        strength: The alpha of SmoothQuant's Eq. 4.
        centre: (channels,); zero where there is no product of its own.
        factor: (channels,), positive.
    """

    strength: float
    centre: Array
    factor: Array


def smoothable(model: onnx.ModelProto, role: Role) -> list[Smoothable]:
    """The linear layers of the blocks and of the fusion, in order."""
    makers = {name: node for node in model.graph.node for name in node.output}
    linears = linear_layers(model, role)
    found = []
    for place, node in linears.items():
        maker = makers[node.input[0]]
        norm = maker if maker.op_type == "LayerNormalization" else None
        qkv = linears[place[: -len("proj")] + "qkv"] if place.endswith("attn.proj") else None
        found.append(Smoothable(node, place, norm, qkv))
    return found


def smooth(
    models: Mapping[Role, onnx.ModelProto], taken: Mapping[str, Channels]
) -> dict[str, Smoothing]:
    """Change FP32 graphs such that they compute the same with smaller activation ranges.

    Graphs that share a weight are changed alike, so that they still share it afterwards.

    Args:
        models: Changed in place.
        taken: By place, what each layer takes in.

    Returns:
        By place, for the layers that were smoothed.
    """
    layers: dict[str, list[tuple[onnx.ModelProto, Smoothable]]] = {}
    for role, model in models.items():
        for layer in smoothable(model, role):
            layers.setdefault(layer.place, []).append((model, layer))
    found = {}
    for place, users in layers.items():
        model, layer = users[0]
        weight = _constant(model, layer.linear.input[1])
        smoothing = _best(taken[place], weight, own_product=layer.has_own_product)
        if smoothing is not None:
            found[place] = smoothing
            for model, layer in users:
                _apply(model, layer, smoothing)
    for model in models.values():
        _drop_unused(model)
    return found


def _best(taken: Channels, weight: Array, *, own_product: bool) -> Smoothing | None:
    """The one with the least error; None if that is not enough less than without."""
    nothing = np.zeros(len(weight))
    centre = (taken.lowest + taken.highest) / 2 if own_product else nothing
    half = _not_far_apart(_half_width(taken, centre))
    of_weight = _not_far_apart(np.abs(weight).max(axis=1))
    choices = [Smoothing(s, centre, _factor(half, of_weight, s)) for s in STRENGTHS]
    errors = [_expected_error(taken, weight, choice) for choice in choices]
    plain = _expected_error(taken, weight, Smoothing(0.0, nothing, np.ones(len(weight))))
    least_gain = _WORTH_A_PRODUCT if own_product else 1.0
    return choices[int(np.argmin(errors))] if min(errors) * least_gain < plain else None


def _factor(half: Array, of_weight: Array, strength: float) -> Array:
    """Eq. 4 of SmoothQuant, about one, so that neither values nor weights change their size."""
    ratio = half**strength / of_weight ** (1 - strength)
    factor: Array = ratio / np.exp(np.log(ratio).mean())
    return factor


def _not_far_apart(sizes: Array) -> Array:
    enough: Array = np.maximum(sizes, max(_SMALLEST, sizes.max() / _MOST_APART))
    return enough


def _half_width(taken: Channels, centre: Array) -> Array:
    half: Array = np.maximum(taken.highest - centre, centre - taken.lowest)
    return half


def _expected_error(taken: Channels, weight: Array, smoothing: Smoothing) -> float:
    """Mean squared error of a layer's output in INT8, but for a constant.

    A step of rounding is its range over the number of levels, and its error is spread evenly over
    it. The input has one step, each output of the weight its own. What the mean of the input does
    to the error of the weight is left out, since `rounding` makes up for it.
    """
    scaled = weight * smoothing.factor[:, None]
    step = float((_half_width(taken, smoothing.centre) / smoothing.factor).max())
    of_input = step**2 * float((scaled**2).sum())
    steps = np.abs(scaled).max(axis=0)
    of_weight = float((steps**2).sum()) * float((taken.variance / smoothing.factor**2).sum())
    return of_input + _LEFT_BY_ROUNDING * of_weight


def _apply(model: onnx.ModelProto, layer: Smoothable, smoothing: Smoothing) -> None:
    """Multiply the rows of the weight, and divide where the channels are made."""
    factor = smoothing.factor
    if layer.norm is not None:
        _change(model, layer.norm, 1, lambda scale: scale / factor)
        _change(model, layer.norm, 2, lambda bias: bias / factor)
    elif layer.qkv is not None:
        ones = np.ones(len(factor))
        of_value = np.concatenate([ones, ones, factor])
        _change(model, layer.qkv, 1, lambda weight: weight / of_value)
        _change_bias(model, layer.qkv, lambda bias: bias / of_value)
    else:
        moved = smoothing.centre @ _constant(model, layer.linear.input[1])
        _change_bias(model, layer.linear, lambda bias: bias + moved)
        _insert_before(model, layer.linear, "Mul", 1 / factor)
        _insert_before(model, layer.linear, "Add", -smoothing.centre / factor)
    _change(model, layer.linear, 1, lambda weight: weight * factor[:, None])


def _insert_before(model: onnx.ModelProto, linear: onnx.NodeProto, op_type: str, by: Array) -> None:
    """Put a product with a constant, or a sum, between a linear layer and what it takes in."""
    name = _inserted_name(linear.name, op_type)
    constant = numpy_helper.from_array(by.astype(np.float32), f"{name}_constant")
    model.graph.initializer.append(constant)
    node = onnx.helper.make_node(
        op_type, [linear.input[0], constant.name], [f"{name}_output"], name
    )
    linear.input[0] = node.output[0]
    index = next(i for i, each in enumerate(model.graph.node) if each.name == linear.name)
    model.graph.node.insert(index, node)


def with_inserted(nodes: frozenset[str]) -> frozenset[str]:
    """Names of nodes, and of what may have been put before them."""
    return nodes | {_inserted_name(name, kind) for name in nodes for kind in ("Mul", "Add")}


def _inserted_name(linear: str, op_type: str) -> str:
    return f"{linear}_smooth_{op_type}"


def _change_bias(
    model: onnx.ModelProto, linear: onnx.NodeProto, change: Callable[[Array], Array]
) -> None:
    """Replace the constant that is added to what a linear layer puts out."""
    bias = next(node for node in model.graph.node if linear.output[0] in node.input)
    _change(model, bias, 0 if bias.input[0] in constants(model) else 1, change)


def _change(
    model: onnx.ModelProto, node: onnx.NodeProto, index: int, change: Callable[[Array], Array]
) -> None:
    """Replace a constant that a node takes; by a new tensor, since equal ones are shared."""
    name = f"{node.name}_smooth_{index}"
    while any(tensor.name == name for tensor in model.graph.initializer):
        name += "_"
    values = change(_constant(model, node.input[index])).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    node.input[index] = name


def _constant(model: onnx.ModelProto, name: str) -> Array:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return numpy_helper.to_array(tensor)


def _drop_unused(model: onnx.ModelProto) -> None:
    read = {name for node in model.graph.node for name in node.input}
    used = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(used)
