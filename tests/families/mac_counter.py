"""Multiply-accumulates of an ONNX graph, from nothing but its operators and their shapes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from sacvit_deploy.exporters.onnx_from_torch import onnx_from_torch
from sacvit_deploy.families import family_named
from sacvit_deploy.families.config import graph_specs

if TYPE_CHECKING:
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.spec import Role

# A new operator that multiplies has to be counted, or the test that uses this says nothing.
_UNCOUNTED = {"Einsum", "QLinearMatMul", "MatMulInteger", "Attention"}


def exported(config: ModelConfig, role: Role, **options: Any) -> onnx.ModelProto:
    """One graph of an untrained network as it leaves the exporter."""
    (spec,) = (spec for spec in graph_specs(config) if spec.role == role)
    return onnx_from_torch(family_named(config.family).load("model")(config, **options), spec)


def counted_macs(model: onnx.ModelProto) -> int:
    """Of one picture: MatMul, Gemm, convolutions, and the weighted sum of what is sampled."""
    shapes = _shapes(_for_one_picture(model))
    total = 0
    for node in model.graph.node:
        assert node.op_type not in _UNCOUNTED
        if node.op_type in ("MatMul", "Gemm"):
            flipped = any(a.name == "transA" and a.i for a in node.attribute)
            inner = shapes[node.input[0]][-2 if flipped else -1]
        elif node.op_type == "Conv":
            inner = math.prod(shapes[node.input[1]][1:])
        elif node.op_type == "ConvTranspose":
            # Stride and kernel are the same, so that no two products meet in a pixel.
            inner = shapes[node.input[1]][0]
        elif node.op_type == "GridSample":
            inner = 1
        else:
            continue
        total += math.prod(shapes[node.output[0]]) * inner
    return total


def _for_one_picture(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for value in (*copy.graph.input, *copy.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_value = 1
    for node in list(copy.graph.node):
        if node.op_type == "Range":  # over the pictures; its shape is not inferred
            first = numpy_helper.from_array(np.zeros(1, np.int64), node.output[0])
            copy.graph.initializer.append(first)
            copy.graph.node.remove(node)
    return shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return shapes
