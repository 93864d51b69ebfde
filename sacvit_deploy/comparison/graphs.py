"""ONNX graphs as data: the place of each node in the network, and graphs computed literally.

Node names come from the exporter and mean nothing to a person. Weights are named after the modules
of the torch network. Every node without weights belongs to the last such layer that it depends on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.engines.session import closed_error
from sacvit_deploy.errors import ConfigError, EngineError
from sacvit_deploy.files import open_regular
from sacvit_deploy.spec import KEPT_MASK, Role

Feeds = Mapping[str, NDArray[Any]]

INPUT = "input"
"""Place of everything before the first linear layer: patches, positions, token choice."""

SINGLE = "_single"
"""Ends the name of a weight that is stored in float16 and cast to float32."""

_WEIGHTED = {"LayerNormalization", "MatMul", "Gemm"}
_ONLY_ERRORS = 3


@dataclass(frozen=True)
class Graph:
    """An FP32 graph of a network.

    Attributes:
        model: The graph with its weights.
        places: Node name to place in the network, for every node as exported, in their order.
    """

    model: onnx.ModelProto
    places: Mapping[str, str]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Graph:
        """Find the place of every node of a graph, which is sorted topologically.

        `EngineError` if its weights do not name their layers.
        """
        return cls(model, _places(model))

    @property
    def linear_layers(self) -> dict[str, onnx.NodeProto]:
        """MatMul of each linear layer of the blocks and of the fusion by its place.

        A layer has the same place in every graph that shares its weight.
        """
        return {self.places[node.name]: node for node in matmuls(self.model)}


def fp32_graphs(bundle: Bundle) -> dict[Role, Graph]:
    """Read the FP32 graphs of a bundle, by role, in the order in which they run."""
    manifest = bundle.manifest
    return {
        entry.role: Graph.of(read_graph(bundle.graph_path(entry)))
        for entry in manifest.graphs
        if entry.precision == "fp32"
    }


def read_graph(path: Path) -> onnx.ModelProto:
    """Read a graph with its weights, those stored in half as the float32 constants they stand for.

    Passes and comparisons that look for constants do not find them behind a Cast. Constants that an
    FP16 graph computes with stay as they are.
    """
    model = onnx.load(path, load_external_data=False)
    for tensor in filter(uses_external_data, model.graph.initializer):
        _load_weights(tensor, path.parent)
    graph = gs.import_onnx(model)
    stored = [node for node in graph.nodes if _casts_stored_weight(node)]
    for node in stored:
        (single,) = node.outputs
        node.outputs.clear()
        single.to_constant(node.inputs[0].values.astype(np.float32))
    return to_model(graph.cleanup()) if stored else model


def _load_weights(tensor: onnx.TensorProto, folder: Path) -> None:
    """Read the values of a tensor; the onnx library refuses files that are links.

    In a cache of Hugging Face all are. The hashes of the bundle cover their targets.
    """
    place = ExternalDataInfo(tensor)
    with open_regular(folder / place.location) as stream:
        stream.seek(place.offset or 0)
        tensor.raw_data = stream.read(-1 if place.length is None else place.length)
    tensor.data_location = onnx.TensorProto.DEFAULT
    tensor.ClearField("external_data")


def _casts_stored_weight(node: gs.Node) -> bool:
    is_weight = node.op == "Cast" and isinstance(node.inputs[0], gs.Constant)
    return is_weight and node.outputs[0].name.endswith(SINGLE)


def redirect(tensor: gs.Tensor, other: gs.Tensor) -> None:
    """Let every reader of a tensor read another one."""
    for node in list(tensor.outputs):
        node.inputs = [other if each is tensor else each for each in node.inputs]


def to_model(graph: gs.Graph) -> onnx.ModelProto:
    """Turn an edited graph into a model; types of new tensors may be missing."""
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    return model


def constants(model: onnx.ModelProto) -> set[str]:
    """Names of the constants of a graph."""
    return {tensor.name for tensor in model.graph.initializer}


def linear_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Products with a constant weight, in order: patch embedding, linear layers, head."""
    known = constants(model)
    return [
        node
        for node in model.graph.node
        if node.op_type in {"MatMul", "Gemm", "Conv"} and node.input[1] in known
    ]


def matmuls(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """MatMul nodes of the linear layers of the blocks and of the fusion, in order.

    Those of gates are left out: they are a few percent of the work, and decide.
    """
    gates = _gate_nodes(model)
    return [
        node for node in linear_nodes(model) if node.op_type == "MatMul" and node.name not in gates
    ]


def _gate_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes between the LayerNorm of a gate and its decisions."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found: set[str] = set()
    pending = [KEPT_MASK]
    while pending:
        node = makers.get(pending.pop())
        if node is not None and node.op_type != "LayerNormalization" and node.name not in found:
            found.add(node.name)
            pending += node.input
    return found


def _places(model: onnx.ModelProto) -> dict[str, str]:
    known = constants(model)
    order = [INPUT]
    depth_of: dict[str, int] = {}
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in _WEIGHTED and node.input[1] in known:
            order.append(module_of(node))
            depth = len(order) - 1
        else:
            depth = max((depth_of.get(name, 0) for name in node.input), default=0)
        depth_of.update(dict.fromkeys(node.output, depth))
        found[node.name] = order[depth]
    return found


def module_of(node: onnx.NodeProto) -> str:
    """Name of the torch module of a node with weights, which the name of its weight begins with.

    Raises:
        EngineError: The weight has no such name, as in graphs of older releases.
    """
    match = re.fullmatch(r"model\.(.+)\.weight.*", node.input[1])
    if match is None:
        raise EngineError(
            f"The graph does not say which layer its weight {node.input[1]} belongs to.",
            "It was not made by this release: export the bundle again.",
        )
    return match[1]


def resolve_keep(keep: Sequence[str], graphs: Mapping[Role, Graph]) -> dict[Role, frozenset[str]]:
    """Find the nodes to keep in FP32.

    Args:
        keep: Names of places or nodes, of one graph as `role:name`, of all graphs without a role.
        graphs: By role.

    Returns:
        Names of nodes by role.

    Raises:
        ConfigError: A name is in no graph.
    """
    nodes: dict[Role, set[str]] = {role: set() for role in graphs}
    for name in keep:
        role_name, colon, rest = name.partition(":")
        wanted = rest if colon else name
        matched = {
            role: {node for node, place in graph.places.items() if wanted in (node, place)}
            for role, graph in graphs.items()
            if not colon or role == role_name
        }
        if not any(matched.values()):
            known = sorted({place for graph in graphs.values() for place in graph.places.values()})
            raise ConfigError(
                f"{name!r} was to stay in FP32; no graph of {', '.join(graphs)} has it.",
                f"Name a node, or one of: {', '.join(known)}; with ROLE: before it for one graph.",
            )
        for role, found in matched.items():
            nodes[role] |= found
    return {role: frozenset(found) for role, found in nodes.items()}


def literal_settings(threads: int | None = None) -> onnxruntime.SessionOptions:
    """Settings of ONNX Runtime that leave a graph as it is; see `LiteralSession`."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ONLY_ERRORS
    settings.intra_op_num_threads = threads or 0  # 0 leaves it to the library
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return settings


class LiteralSession:
    """ONNX Runtime on the CPU without graph optimisation: no rounding is skipped, nothing fused."""

    provider = "CPUExecutionProvider"

    def __init__(self, model: onnx.ModelProto, file: Path, threads: int | None = None) -> None:
        """Open a graph.

        Args:
            model: With its weights.
            file: Where to put a copy of it.
            threads: CPU threads of one operator; None leaves it to the library.

        Raises:
            EngineError: ONNX Runtime cannot load it.
        """
        onnx.save(model, file)
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(file), literal_settings(threads), providers=[self.provider]
            )
        except Exception as error:  # its exceptions share no other base
            raise EngineError(
                f"ONNX Runtime cannot load a converted graph: {error}",
                "Export with --precision fp32, and please report this.",
            ) from error

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        if self._session is None:
            raise closed_error("A session without graph optimisation")
        names = [node.name for node in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def close(self) -> None:
        """See `Session.close`."""
        self._session = None


def tensor_values(
    model: onnx.ModelProto, tensors: Iterable[str], feeds: Feeds, file: Path
) -> dict[str, NDArray[Any]]:
    """Compute the outputs of a graph, and some tensors inside it.

    Args:
        model: With its weights.
        tensors: Names.
        feeds: Inputs of the graph.
        file: Where to put a copy of the graph.
    """
    return LiteralSession(with_outputs(model, tensors), file).run(feeds)


def with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """The same graph with some tensors inside it as further outputs."""
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
    known = graph.tensors()
    graph.outputs += [known[name] for name in tensors if known[name] not in graph.outputs]
    return to_model(graph)


def rounding_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """A typed graph in which ONNX Runtime on a CPU really rounds every half tensor.

    It computes half operators in FP32 and drops the roundings between two of them, so that what
    overflows on a GPU passes unnoticed. Two Identity nodes in between, with graph optimisation off,
    make it round. It computes a single one in FP32 like its neighbours.
    """
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
    for node in list(graph.nodes):
        for tensor in node.outputs:
            if tensor.dtype != np.float16 or tensor in graph.outputs:
                continue
            names = (f"{tensor.name}_between", f"{tensor.name}_rounded")
            between, rounded = (gs.Variable(name, np.float16, tensor.shape) for name in names)
            redirect(tensor, rounded)
            for source, target in ((tensor, between), (between, rounded)):
                graph.nodes.append(gs.Node("Identity", target.name, {}, [source], [target]))
    return to_model(graph.toposort())
