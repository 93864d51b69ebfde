"""Exported graphs and small ones, read and run in tests."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.bundle_changes import write_manifest
from sacvit_deploy.comparison.graphs import Graph, fp32_graphs, to_model
from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.exporters import export
from sacvit_deploy.exporters.shared_weights import save_with_shared_weights
from sacvit_deploy.spec import GraphSpec, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sacvit_deploy.records import WeightsOrigin
    from sacvit_deploy.spec import Role

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
X, Y = {"x": (FLOAT, ("batch", 4))}, {"y": (FLOAT, ("batch", 4))}


def read_graph(bundle: Bundle, role: Role) -> onnx.ModelProto:
    """With its weights, which makes it independent of the bundle's folder."""
    return onnx.load(bundle.graph_path(bundle.graph(role)))


def placed(bundle: Bundle, role: Role) -> Graph:
    """The FP32 graph with the places of its nodes."""
    return Graph.of(read_graph(bundle, role))


@contextlib.contextmanager
def translated_from(bundle: Bundle) -> Iterator[list[Role]]:
    """Replace the translation of a model by the graphs of a bundle; gives the requested roles."""
    asked: list[Role] = []

    def from_disk(_model: Any, spec: GraphSpec, *, opset: int) -> onnx.ModelProto:
        assert opset == 18
        asked.append(spec.role)
        return read_graph(bundle, spec.role)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "onnx_from_torch", from_disk)
        yield asked


def with_constants(
    bundle: Bundle,
    path: Path,
    change: Callable[[dict[str, gs.Node]], None],
    weights: WeightsOrigin | None = None,
) -> Bundle:
    """A copy of an FP32 bundle with other constants.

    Args:
        bundle: Any.
        path: Folder of the copy.
        change: Changes linear layers, given by their places.
        weights: New record of the weights, if any.
    """
    graphs = {}
    for role, graph in fp32_graphs(bundle).items():
        edited = gs.import_onnx(graph.model)
        nodes = {node.name: node for node in edited.nodes}
        change({place: nodes[node.name] for place, node in graph.linear_layers.items()})
        graphs[bundle.graph(role).file] = to_model(edited)
    path.mkdir()
    save_with_shared_weights(graphs, path)
    manifest = bundle.manifest
    write_manifest(path, dataclasses.replace(manifest, weights=weights or manifest.weights))
    return Bundle.open(path)


def bias_of(linear: gs.Node) -> gs.Constant:
    """The constant that is added to the result of a linear layer."""
    return next(tensor for tensor in linear.o().inputs if isinstance(tensor, gs.Constant))


def session(bundle: Bundle, role: Role) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(bundle.graph_path(bundle.graph(role)), SessionOptions(threads=1))


def op_counts(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def run_model(model: onnx.ModelProto, **feeds: np.ndarray) -> list[Any]:
    """All outputs of a graph in memory."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return list(made.run(None, feeds))


def normalised(bundle: Bundle, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random pictures as (uint8 pixels, normalised floats), both (count, 3, H, W)."""
    spec = bundle.manifest.preprocessing
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, *spec.crop), dtype=np.uint8)
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    return pixels, (pixels.astype(np.float32) / np.float32(255) - mean) / std


def small_model(nodes, inputs, outputs, constants=None) -> onnx.ModelProto:
    """`inputs` and `outputs`: name to (type, shape)."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made)


def contract(inputs, outputs) -> GraphSpec:
    dtypes: dict[int, Any] = {FLOAT: "float32", INT: "int64", TensorProto.UINT8: "uint8"}
    specs = [
        tuple(TensorSpec(name, dtypes[dtype], shape) for name, (dtype, shape) in tensors.items())
        for tensors in (inputs, outputs)
    ]
    return GraphSpec("single", "model.onnx", *specs)


def doubled() -> onnx.ModelProto:
    """y = (1 + 1) x, and a node that nobody reads."""
    nodes = [
        helper.make_node("Add", ["one", "one"], ["two"], name="constant"),
        helper.make_node("Mul", ["x", "two"], ["y"], name="mul"),
        helper.make_node("Neg", ["x"], ["nobody"], name="dead"),
    ]
    return small_model(nodes, X, Y, {"one": np.ones(4, np.float32)})


def harmless(_: gs.Graph) -> int:
    """A pass that changes nothing."""
    return 0
