"""Graphs of a few nodes that have the inputs and outputs of real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

    from sacvit_deploy.records import GraphEntry
    from sacvit_deploy.spec import TensorSpec

_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], spec.shape)


def _slope(shape: tuple[int, ...], name: str) -> onnx.TensorProto:
    ramp = np.linspace(0.5, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    return numpy_helper.from_array(ramp, name)


def write_graph(path: Path, entry: GraphEntry) -> None:
    """Every output is the mean of the picture per row, times a ramp of the output's shape."""
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("Exp", ["mean"], ["level"]),
    ]
    constants = [numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes")]
    for spec in entry.outputs:
        rank = len(spec.shape)
        constants += [
            _slope(tuple(int(side) for side in spec.shape[1:]), f"{spec.name}_ramp"),
            numpy_helper.from_array(np.array([-1] + [1] * (rank - 1), np.int64), f"{spec.name}_to"),
        ]
        nodes += [
            helper.make_node("Reshape", ["level", f"{spec.name}_to"], [f"{spec.name}_level"]),
            helper.make_node("Mul", [f"{spec.name}_level", f"{spec.name}_ramp"], [spec.name]),
        ]
    graph = helper.make_graph(
        nodes, entry.role, [*map(_value, entry.inputs)], [*map(_value, entry.outputs)], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
