"""Graphs of a few nodes in one precision, with the inputs and outputs of real ones."""

from __future__ import annotations

import dataclasses
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.bundle_changes import new_bundle, write_manifest
from tests.fakes import fake_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from sacvit_deploy.records import GraphEntry
    from sacvit_deploy.spec import Precision, Selection, TensorSpec

_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
_WIDTH = 16


def write_typed_bundle(
    folder: Path, *precisions: Precision, selection: Selection = "host"
) -> Bundle:
    """A bundle with graphs in FP32 and in each of those precisions."""
    manifest = fake_manifest(selection=selection)
    graphs = []
    for precision in ("fp32", *precisions):
        for graph in manifest.graphs:
            file = PurePosixPath(graph.file)
            name = str(file) if precision == "fp32" else f"{file.stem}.{precision}.onnx"
            graphs.append(dataclasses.replace(graph, precision=precision, file=name))
    with new_bundle(folder) as staging:
        for graph in graphs:
            write_typed_graph(staging / graph.file, graph, graph.precision)
        write_manifest(staging, dataclasses.replace(manifest, graphs=tuple(graphs)))
    return Bundle.open(folder)


def write_typed_graph(path: Path, entry: GraphEntry, precision: Precision) -> None:
    """Two linear layers on the picture; every output is their result times a ramp."""
    image = next(spec for spec in entry.inputs if spec.name == "image")
    pixels = int(np.prod([side for side in image.shape if isinstance(side, int)]))
    nodes = [helper.make_node("Reshape", ["image", "flat"], ["pixels"])]
    constants = [_ints("flat", -1, pixels)]
    name = _linear(nodes, constants, "first", "pixels", (pixels, _WIDTH), precision)
    name = _linear(nodes, constants, "second", name, (_WIDTH, 1), precision)
    for spec in entry.outputs:
        rank = len(spec.shape)
        ramp = np.linspace(0.5, 2, int(np.prod(spec.shape[1:]))).reshape(spec.shape[1:])  # type: ignore[arg-type]
        constants += [
            numpy_helper.from_array(ramp.astype(np.float32), f"{spec.name}_ramp"),
            _ints(f"{spec.name}_to", -1, *[1] * (rank - 1)),
        ]
        wide = spec.name if spec.dtype == "float32" else f"{spec.name}_float"
        nodes += [
            helper.make_node("Reshape", [name, f"{spec.name}_to"], [f"{spec.name}_level"]),
            helper.make_node("Mul", [f"{spec.name}_level", f"{spec.name}_ramp"], [wide]),
        ]
        if wide != spec.name:
            nodes.append(helper.make_node("Cast", [wide], [spec.name], to=_TYPES[spec.dtype]))
    graph = helper.make_graph(
        nodes, entry.role, [*map(_value, entry.inputs)], [*map(_value, entry.outputs)], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _linear(nodes, constants, name, source, shape, precision) -> str:
    """Add a MatMul with a constant in that precision; returns the name of its float32 result."""
    generator = np.random.default_rng(shape[0])
    weight = generator.normal(size=shape).astype(np.float32)
    if precision == "fp16":
        constants.append(numpy_helper.from_array(weight.astype(np.float16), f"{name}_weight"))
        nodes += [
            helper.make_node("Cast", [source], [f"{name}_half"], to=TensorProto.FLOAT16),
            helper.make_node("MatMul", [f"{name}_half", f"{name}_weight"], [f"{name}_product"]),
            helper.make_node("Cast", [f"{name}_product"], [f"{name}_out"], to=TensorProto.FLOAT),
        ]
    elif precision == "int8":
        quantised = np.clip(weight * 40, -127, 127).astype(np.int8)
        constants += [
            numpy_helper.from_array(quantised, f"{name}_weight"),
            numpy_helper.from_array(np.float32(0.025), f"{name}_weight_scale"),
            numpy_helper.from_array(np.float32(0.05), f"{name}_scale"),
            numpy_helper.from_array(np.int8(0), f"{name}_zero"),
        ]
        scale, zero = f"{name}_scale", f"{name}_zero"
        nodes += [
            helper.make_node("QuantizeLinear", [source, scale, zero], [f"{name}_q"]),
            helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_in"]),
            helper.make_node(
                "DequantizeLinear",
                [f"{name}_weight", f"{name}_weight_scale", zero],
                [f"{name}_wide"],
            ),
            helper.make_node("MatMul", [f"{name}_in", f"{name}_wide"], [f"{name}_out"]),
        ]
    else:
        constants.append(numpy_helper.from_array(weight, f"{name}_weight"))
        nodes.append(helper.make_node("MatMul", [source, f"{name}_weight"], [f"{name}_out"]))
    return f"{name}_out"


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], spec.shape)


def _ints(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)
