"""Even out the channels that a linear layer takes in, before INT8.

Xiao et al., "SmoothQuant" (ICML 2023), Eq. 3 and 4: a few channels of a transformer are many times
as large as the others, and take most of the 8 bits. Dividing channel j of the input by s_j and
multiplying row j of the weight by it computes the same, with ranges that are easier on both. The
division is written into what made the channel: the LayerNormalization before, or the value part of
`attn.qkv`, through which attention only mixes tokens. Behind GELU there is nothing that could take
it in, so there it is a product of its own, and has to be worth it.

How far the weight takes over, the alpha of Eq. 4, is chosen for each layer by the error that
rounding leaves in its output on the calibration pictures, as AWQ does (Lin et al., MLSys 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from sacvit_deploy.exporters.precision.calibrate import quantised_nodes
from sacvit_deploy.exporters.precision.places import constants, places

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from sacvit_deploy.exporters.precision.channels import Channels
    from sacvit_deploy.spec import Role

    Array = NDArray[Any]

STRENGTHS = (0.5, 0.65, 0.8, 0.9, 1.0)
_SMALLEST = 1e-5
_WORTH_A_PRODUCT = 2.0


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
    def least_gain(self) -> float:
        """How many times less the error has to get: a product of its own must be worth it."""
        return _WORTH_A_PRODUCT if self.norm is None and self.qkv is None else 1.0


def smoothable(model: onnx.ModelProto, role: Role) -> list[Smoothable]:
    """The linear layers of a graph that can be smoothed: all but the patch embedding."""
    where = places(model, role)
    makers = {name: node for node in model.graph.node for name in node.output}
    linears = {where[n.name]: n for n in quantised_nodes(model) if n.op_type == "MatMul"}
    found = []
    for place, node in linears.items():
        maker = makers[node.input[0]]
        norm = maker if maker.op_type == "LayerNormalization" else None
        qkv = linears[place[: -len("proj")] + "qkv"] if place.endswith("attn.proj") else None
        found.append(Smoothable(node, place, norm, qkv))
    return found


def smooth(
    models: Mapping[Role, onnx.ModelProto], channels: Mapping[Role, Mapping[str, Channels]]
) -> dict[str, float]:
    """Change FP32 graphs such that they compute the same with smaller activation ranges.

    Graphs that share a weight get the same factors, so that they still share it afterwards.

    Args:
        models: Changed in place.
        channels: By role, what each layer of `smoothable` took in, by the name of the tensor.

    Returns:
        Place to the strength that was chosen, for the layers that were smoothed.
    """
    layers: dict[str, list[tuple[onnx.ModelProto, Smoothable]]] = {}
    taken: dict[str, list[Channels]] = {}
    for role, model in models.items():
        for layer in smoothable(model, role):
            layers.setdefault(layer.place, []).append((model, layer))
            taken.setdefault(layer.place, []).append(channels[role][layer.linear.input[0]])
    strengths = {}
    for place, users in layers.items():
        model, layer = users[0]
        weight = _constant(model, layer.linear.input[1])
        strength = _best_strength(taken[place], weight, layer.least_gain)
        if strength is not None:
            strengths[place] = strength
            factor = _factor(taken[place], weight, strength)
            for model, layer in users:
                _apply(model, layer, factor)
    for model in models.values():
        _drop_unused(model)
    return strengths


def _best_strength(taken: list[Channels], weight: Array, at_least: float) -> float | None:
    """The one with the least error; None if that is not `at_least` times less than without."""
    plain = _rounding_error(taken, weight, np.ones(len(weight)))
    errors = {s: _rounding_error(taken, weight, _factor(taken, weight, s)) for s in STRENGTHS}
    best = min(errors, key=lambda strength: errors[strength])
    return best if errors[best] * at_least < plain else None


def _factor(taken: list[Channels], weight: Array, strength: float) -> Array:
    """Eq. 4 of SmoothQuant, (channels,)."""
    of_input = np.max([channels.largest for channels in taken], axis=0)
    of_weight = np.abs(weight).max(axis=1)
    shared: Array = np.maximum(of_weight, _SMALLEST) ** (1 - strength)
    factor: Array = np.maximum(of_input, _SMALLEST) ** strength / shared
    return factor


def _rounding_error(taken: list[Channels], weight: Array, factor: Array) -> float:
    """Mean squared error of a layer's output in INT8, summed over the graphs that share it."""
    scaled_weight = weight * factor[:, None]
    scale = np.abs(scaled_weight).max(axis=0)
    rounded_weight = _rounded(scaled_weight, scale) / factor[:, None]
    error = 0.0
    for channels in taken:
        largest = (channels.largest / factor).max()
        rounded = _rounded(channels.rows / factor, largest) * factor
        error += float(((rounded @ rounded_weight - channels.rows @ weight) ** 2).mean())
    return error


def _rounded(values: Array, largest: Array) -> Array:
    """Through symmetric INT8 and back."""
    scale = np.maximum(largest, _SMALLEST) / 127
    rounded: Array = np.rint(values / scale) * scale
    return rounded


def _apply(model: onnx.ModelProto, layer: Smoothable, factor: Array) -> None:
    """Multiply the rows of the weight, and divide where the channels are made."""
    if layer.norm is not None:
        _scale(model, layer.norm, 1, 1 / factor)
        _scale(model, layer.norm, 2, 1 / factor)
    elif layer.qkv is not None:
        ones = np.ones(len(factor))
        of_value = np.concatenate([ones, ones, 1 / factor])
        _scale(model, layer.qkv, 1, of_value)
        bias = next(n for n in model.graph.node if layer.qkv.output[0] in n.input)
        _scale(model, bias, 0 if bias.input[0] in constants(model) else 1, of_value)
    else:
        _divide_input(model, layer.linear, factor)
    _scale(model, layer.linear, 1, factor[:, None])


def _divide_input(model: onnx.ModelProto, linear: onnx.NodeProto, factor: Array) -> None:
    """A product of its own in front of a linear layer."""
    name = f"{linear.name}_smooth"
    model.graph.initializer.append(
        numpy_helper.from_array((1 / factor).astype(np.float32), f"{name}_factor")
    )
    product = onnx.helper.make_node(
        "Mul", [linear.input[0], f"{name}_factor"], [f"{name}_output"], name
    )
    linear.input[0] = product.output[0]
    index = next(i for i, node in enumerate(model.graph.node) if node.name == linear.name)
    model.graph.node.insert(index, product)


def _scale(model: onnx.ModelProto, node: onnx.NodeProto, index: int, by: Array) -> None:
    """Multiply a constant that a node takes; as a new tensor, since equal ones are shared."""
    name = f"{node.name}_smooth_{index}"
    while any(tensor.name == name for tensor in model.graph.initializer):
        name += "_"
    values = (_constant(model, node.input[index]) * by).astype(np.float32)
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
