"""Smoothing of the input channels of linear layers, before INT8.

Xiao et al., "SmoothQuant" (ICML 2023), Eq. 3 and 4: a few channels of a transformer are many times
as large as the others, and take most of the 8 bits. Dividing channel j of the input by s_j and
multiplying row j of the weight by it computes the same, with ranges that are easier on both. The
division goes into the node that makes the channel: the LayerNormalization before, or the value part
of `attn.qkv`, because attention mixes tokens and not channels.

No node before GELU can take the division in. There it is a product of its own, and has to be worth
it. The results of GELU lie almost wholly on one side of zero, where a scale that is the same for
both signs leaves half of its levels unused. So there each channel is also moved to the middle of
its range, and the bias of the layer corrects it (Wei et al., "Outlier Suppression+", EMNLP 2023,
Eq. 3).

The alpha of Eq. 4, how far the weight takes over, is chosen for each layer by the expected error of
its output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from sacvit_deploy.comparison.graphs import Graph, to_model
from sacvit_deploy.exporters.precision.ranges import Channels
from sacvit_deploy.spec import Role

Array = NDArray[Any]

STRENGTHS = (0.5, 0.65, 0.8, 0.9, 1.0)
_SMALLEST = 1e-5
# No channel is enlarged more than so many times against another: a dead one has nothing to gain,
# and half precision overflows.
_MOST_APART = 1e3
_WORTH_A_PRODUCT = 2.0
# Share of the squared error of a weight rounded to nearest that GPTQ leaves, as measured.
_LEFT_BY_ROUNDING = 0.25


@dataclass(frozen=True)
class Smoothable:
    """A linear layer whose input channels can be scaled.

    Attributes:
        linear: Its MatMul.
        place: Its place, the same in every graph that shares its weights.
        norm: LayerNormalization that makes its input, with constant scale and bias; None where
            another node does.
        qkv: For `attn.proj`, the MatMul whose value part its input mixes; None for the others.
    """

    linear: gs.Node
    place: str
    norm: gs.Node | None
    values: gs.Node | None

    @property
    def weight(self) -> Array:
        """The weight, (inputs, outputs)."""
        return np.asarray(self.linear.inputs[1].values)

    @property
    def has_own_product(self) -> bool:
        """Whether nothing before it can take the division in."""
        return self.norm is None and self.values is None


@dataclass(frozen=True)
class Smoothing:
    """A change of a layer: it takes in (x - centre) / factor.

    Attributes:
        strength: The alpha of SmoothQuant's Eq. 4.
        centre: (channels,); zero where there is no product of its own.
        factor: (channels,), positive.
    """

    strength: float
    centre: Array
    factor: Array


def smooth(
    graphs: Mapping[Role, Graph], taken: Mapping[str, Channels]
) -> tuple[dict[Role, Graph], dict[str, Smoothing]]:
    """Change FP32 graphs such that they compute the same with smaller activation ranges.

    Graphs that share a weight are changed alike, so that they still share it afterwards.

    Args:
        graphs: FP32 graphs by role; they stay as they are.
        taken: Input of each layer, by place.

    Returns:
        The new graphs; and the change of each layer that was smoothed, by place.
    """
    edited = {role: gs.import_onnx(graph.model) for role, graph in graphs.items()}
    users: dict[str, list[tuple[gs.Graph, Smoothable]]] = {}
    for role, graph in edited.items():
        for layer in smoothable(graph, graphs[role].linear_layers):
            users.setdefault(layer.place, []).append((graph, layer))
    found = {}
    for place, layers in users.items():
        layer = layers[0][1]
        smoothing = _best(taken[place], layer.weight, own_product=layer.has_own_product)
        if smoothing is not None:
            found[place] = smoothing
            for graph, layer in layers:
                _apply(graph, layer, smoothing)
    return {role: replace(graphs[role], model=to_model(edited[role])) for role in graphs}, found


def smoothable(graph: gs.Graph, layers: Mapping[str, onnx.NodeProto]) -> list[Smoothable]:
    """List the linear layers of the blocks and of the fusion, in order.

    Args:
        graph: A graph.
        layers: MatMul of each layer, by place.
    """
    nodes = {node.name: node for node in graph.nodes}
    linears = {place: nodes[node.name] for place, node in layers.items()}
    found = []
    for place, linear in linears.items():
        maker = linear.i(0)
        norm = maker if maker.op == "LayerNormalization" else None
        found.append(Smoothable(linear, place, norm, _values_of(place, linears)))
    return found


def _values_of(place: str, linears: Mapping[str, gs.Node]) -> gs.Node | None:
    """The linear layer whose last outputs are the values that this layer merges, if it does."""
    if not place.endswith("attn.proj"):
        return None
    attention = place.removesuffix("proj")
    return linears.get(attention + "qkv") or linears[attention + "kv"]


def _best(taken: Channels, weight: Array, *, own_product: bool) -> Smoothing | None:
    """Choose the smoothing with the least error; None if it gains too little."""
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
    return np.asarray(ratio / np.exp(np.log(ratio).mean()))


def _not_far_apart(sizes: Array) -> Array:
    return np.asarray(np.maximum(sizes, max(_SMALLEST, sizes.max() / _MOST_APART)))


def _half_width(taken: Channels, centre: Array) -> Array:
    return np.asarray(np.maximum(taken.highest - centre, centre - taken.lowest))


def _expected_error(taken: Channels, weight: Array, smoothing: Smoothing) -> float:
    """Mean squared error of a layer's output in INT8, but for a constant.

    A step of rounding is its range over the number of levels, and its error is spread evenly over
    it. The input has one step, each output of the weight its own. The mean of the input is left out
    of the error of the weight, since GPTQ corrects it.
    """
    scaled = weight * smoothing.factor[:, None]
    step = float((_half_width(taken, smoothing.centre) / smoothing.factor).max())
    of_input = step**2 * float((scaled**2).sum())
    steps = np.abs(scaled).max(axis=0)
    of_weight = float((steps**2).sum()) * float((taken.variance / smoothing.factor**2).sum())
    return of_input + _LEFT_BY_ROUNDING * of_weight


def _apply(graph: gs.Graph, layer: Smoothable, smoothing: Smoothing) -> None:
    """Multiply the rows of the weight, and divide where the channels are made."""
    factor = smoothing.factor
    if layer.norm is not None:
        _change(layer.norm, 1, lambda scale: scale / factor)
        _change(layer.norm, 2, lambda bias: bias / factor)
    elif layer.values is not None:
        others = layer.values.inputs[1].values.shape[1] - len(factor)
        of_value = np.concatenate([np.ones(others), factor])
        _change(layer.values, 1, lambda weight: weight / of_value)
        _change_bias(layer.values, lambda bias: bias / of_value)
    else:
        moved = smoothing.centre @ layer.weight
        _change_bias(layer.linear, lambda bias: bias + moved)
        _insert_before(graph, layer.linear, "Mul", 1 / factor)
        _insert_before(graph, layer.linear, "Add", -smoothing.centre / factor)
    _change(layer.linear, 1, lambda weight: weight * factor[:, None])


def _change_bias(linear: gs.Node, change: Callable[[Array], Array]) -> None:
    """Replace the constant that is added to the result of a linear layer, if it has a bias."""
    add = linear.o()
    if add.op != "Add" or not any(isinstance(each, gs.Constant) for each in add.inputs):
        return
    _change(add, 0 if isinstance(add.inputs[0], gs.Constant) else 1, change)


def _change(node: gs.Node, index: int, change: Callable[[Array], Array]) -> None:
    """Replace a constant of a node by a new one, since nodes share equal constants."""
    old = node.inputs[index]
    name = f"{node.name}_smooth_{index}"
    name += "_" if old.name == name else ""
    node.inputs[index] = gs.Constant(name, change(old.values).astype(np.float32))


def _insert_before(graph: gs.Graph, linear: gs.Node, op: str, by: Array) -> None:
    """Put a product with a constant, or a sum, between a linear layer and its input."""
    name = _inserted_name(linear.name, op)
    constant = gs.Constant(f"{name}_constant", by.astype(np.float32))
    output = gs.Variable(f"{name}_output")
    node = gs.Node(op, name, {}, [linear.inputs[0], constant], [output])
    linear.inputs[0] = output
    graph.nodes.insert(next(i for i, each in enumerate(graph.nodes) if each is linear), node)


def with_inserted(nodes: frozenset[str]) -> frozenset[str]:
    """Names of nodes, and of the nodes that may have been put before them."""
    return nodes | {_inserted_name(name, op) for name in nodes for op in ("Mul", "Add")}


def _inserted_name(linear: str, op: str) -> str:
    return f"{linear}_smooth_{op}"
