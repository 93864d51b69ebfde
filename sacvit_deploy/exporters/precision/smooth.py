"""Even out the channels that LayerNormalization hands to a linear layer, before INT8.

Xiao et al., "SmoothQuant" (ICML 2023), Eq. 4: a few channels of a transformer are many times as
large as the others, and take most of the 8 bits. Dividing channel j by s_j and multiplying row j of
the weight by it computes the same, with ranges that are easier on both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import numpy_helper

from sacvit_deploy.exporters.precision.calibrate import quantised_nodes
from sacvit_deploy.exporters.precision.places import places

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx
    from numpy.typing import NDArray

    from sacvit_deploy.spec import Role

STRENGTH = 0.5
_SMALLEST = 1e-5


@dataclass(frozen=True)
class Pair:
    """A LayerNormalization and the only linear layer that reads it.

    Attributes:
        norm: With constant scale and bias.
        linear: Its MatMul.
        place: Of the linear layer, the same in every graph that shares its weights.
    """

    norm: onnx.NodeProto
    linear: onnx.NodeProto
    place: str


def pairs(model: onnx.ModelProto, role: Role) -> list[Pair]:
    """What can be smoothed in a graph."""
    where = places(model, role)
    makers = {name: node for node in model.graph.node for name in node.output}
    return [
        Pair(makers[node.input[0]], node, where[node.name])
        for node in quantised_nodes(model)
        if node.op_type == "MatMul" and _is_norm(makers.get(node.input[0]))
    ]


def smooth(
    models: Mapping[Role, onnx.ModelProto], values: Mapping[Role, Mapping[str, NDArray[Any]]]
) -> None:
    """Change FP32 graphs such that they compute the same with smaller activation ranges.

    Graphs that share a weight get the same factors, so that they still share it afterwards.

    Args:
        models: Changed in place.
        values: By role, what each norm of `pairs` gave on a batch of pictures, by tensor name.
    """
    found = [(role, pair) for role, model in models.items() for pair in pairs(model, role)]
    largest: dict[str, NDArray[Any]] = {}
    for role, pair in found:
        name = pair.norm.output[0]
        channels = np.abs(values[role][name]).reshape(-1, values[role][name].shape[-1]).max(axis=0)
        largest[pair.place] = np.maximum(largest.get(pair.place, 0), channels)
    for role, pair in found:
        _apply(models[role], pair, largest[pair.place])


def _apply(model: onnx.ModelProto, pair: Pair, largest: NDArray[Any]) -> None:
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = numpy_helper.to_array(stored[pair.linear.input[1]])
    of_weight = np.abs(weight).max(axis=1)
    factor = np.maximum(largest, _SMALLEST) ** STRENGTH
    factor = factor / np.maximum(of_weight, _SMALLEST) ** (1 - STRENGTH)
    scaled = ((pair.norm, 1, 1 / factor), (pair.norm, 2, 1 / factor))
    for node, index, by in (*scaled, (pair.linear, 1, factor[:, None])):
        values = (numpy_helper.to_array(stored[node.input[index]]) * by).astype(np.float32)
        # A new tensor: the exporter lets equal ones be shared.
        name = f"{pair.linear.name}_smooth_{node.op_type}_{index}"
        model.graph.initializer.append(numpy_helper.from_array(values, name))
        node.input[index] = name
    _drop_unused(model)


def _drop_unused(model: onnx.ModelProto) -> None:
    read = {name for node in model.graph.node for name in node.input}
    used = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(used)


def _is_norm(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "LayerNormalization"
