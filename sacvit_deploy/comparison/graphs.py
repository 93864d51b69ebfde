"""Where in the network a node of a graph stands.

Node names come from the exporter and mean nothing to a person. Linear layers and LayerNormalization
do: their order is fixed, since each depends on the one before. Every other node belongs to the last
of them that it depends on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from onnx import numpy_helper

from sacvit_deploy.engines.session import closed_error
from sacvit_deploy.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sacvit_deploy.engines.session import Session
    from sacvit_deploy.spec import Role

    Feeds = Mapping[str, NDArray[Any]]


INPUT = "input"
"""The place of what comes before the first linear layer: patches, positions, token choice."""

_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_FUSION = ("fusion.norm", "fusion.mlp.fc1", "fusion.mlp.fc2")
_ANCHORS = {"LayerNormalization", "MatMul", "Gemm"}


def constants(model: onnx.ModelProto) -> set[str]:
    """Names of the graph's constants."""
    return {tensor.name for tensor in model.graph.initializer}


def linear_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Products with a constant weight, in order: patch embedding, linear layers, head."""
    known = constants(model)
    return [
        node
        for node in model.graph.node
        if node.op_type in {"MatMul", "Gemm", "Conv"} and node.input[1] in known
    ]


def places(model: onnx.ModelProto, role: Role) -> dict[str, str]:
    """Name of every node to its place, in the order of the graph.

    Args:
        model: An FP32 graph as exported, sorted topologically.
        role: Its place in the pipeline.
    """
    known = constants(model)
    names = _anchor_names(role)
    order = [INPUT]
    depth_of: dict[str, int] = {}
    found: dict[str, str] = {}
    for node in model.graph.node:
        if _is_anchor(node, known):
            order.append(next(names))
            depth = len(order) - 1
        else:
            depth = max((depth_of.get(name, 0) for name in node.input), default=0)
        depth_of.update(dict.fromkeys(node.output, depth))
        found[node.name] = order[depth]
    # After the last block come the final norm and the head, whatever the depth.
    last_norm = next(n for n in reversed(model.graph.node) if n.op_type == "LayerNormalization")
    renamed = {found[last_norm.name]: "norm", order[-1]: "head"}
    return {name: renamed.get(place, place) for name, place in found.items()}


def resolve_keep(
    keep: Sequence[str], graphs: dict[Role, onnx.ModelProto]
) -> dict[Role, frozenset[str]]:
    """The nodes of each graph that names of places and nodes stand for.

    Raises:
        ConfigError: A name is in no graph.
    """
    nodes: dict[Role, set[str]] = {role: set() for role in graphs}
    where = {role: places(model, role) for role, model in graphs.items()}
    for name in keep:
        role_name, colon, rest = name.partition(":")
        roles = [role for role in graphs if not colon or role == role_name]
        wanted = rest if colon else name
        matched = {
            role: {node for node, place in where[role].items() if wanted in (node, place)}
            for role in roles
        }
        if not any(matched.values()):
            known = sorted({place for found in where.values() for place in found.values()})
            raise ConfigError(
                f"{name!r} was to stay in FP32; no graph of {', '.join(graphs)} has it.",
                f"Name a node, or one of: {', '.join(known)}; with ROLE: before it for one graph.",
            )
        for role, found in matched.items():
            nodes[role] |= found
    return {role: frozenset(found) for role, found in nodes.items()}


def _is_anchor(node: onnx.NodeProto, known: set[str]) -> bool:
    return node.op_type in _ANCHORS and node.input[1] in known


def _anchor_names(role: Role) -> Iterator[str]:
    if role == "refine":
        yield from _FUSION
    block = 0
    while True:
        yield from (f"blocks.{block}.{name}" for name in _BLOCK)
        block += 1


_ONLY_ERRORS = 3


class RecordingSession:
    """Another session, and the first feeds it was given in `first_feeds`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.provider, self.close = session.provider, session.close
        self.first_feeds: Feeds = {}

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        self.first_feeds = self.first_feeds or dict(feeds)
        return self._session.run(feeds)


class LiteralSession:
    """ONNX Runtime on the CPU without graph optimisation: no rounding is skipped, nothing fused."""

    provider = "CPUExecutionProvider"

    def __init__(self, path: Path) -> None:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = _ONLY_ERRORS
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), settings, providers=[self.provider]
            )
        except Exception as error:  # its exceptions share no other base
            raise EngineError(
                f"ONNX Runtime cannot load a converted graph: {error}",
                "Export with --precision fp32, and please report this.",
            ) from error

    @classmethod
    def of(cls, model: onnx.ModelProto, file: Path) -> LiteralSession:
        """Of a graph in memory, by way of a file."""
        onnx.save(model, file)
        return cls(file)

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        if self._session is None:
            raise closed_error("A session without graph optimisation")
        names = [node.name for node in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def close(self) -> None:
        """See `Session.close`."""
        self._session = None


def with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """The same graph with some tensors in the middle of it as outputs."""
    typed = onnx.shape_inference.infer_shapes(model)
    infos = {info.name: info for info in typed.graph.value_info}
    outputs = {info.name for info in typed.graph.output}
    typed.graph.output.extend(infos[name] for name in tensors if name not in outputs)
    return typed


def tensor_values(
    model: onnx.ModelProto, tensors: Iterable[str], feeds: Feeds, file: Path
) -> dict[str, NDArray[Any]]:
    """Outputs of a graph, and some tensors in the middle of it.

    Args:
        model: With its weights.
        tensors: Names.
        feeds: Inputs of the graph.
        file: Where to put a copy of the graph.
    """
    return LiteralSession.of(with_outputs(model, tensors), file).run(feeds)


def rounding_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """A typed graph in which ONNX Runtime on a CPU really rounds every half tensor.

    It computes half operators in FP32 and drops the roundings between two of them, so that what
    overflows on a GPU passes unnoticed. Two Identity nodes in between, with graph optimisation off,
    make it round; a single one it would compute in FP32 like its neighbours.

    Args:
        model: From `half_model`.
    """
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
    for node in list(graph.nodes):
        for tensor in node.outputs:
            if tensor.dtype != np.float16 or tensor in graph.outputs:
                continue
            rounded = gs.Variable(f"{tensor.name}_rounded", np.float16, tensor.shape)
            for reader in list(tensor.outputs):
                reader.inputs = [rounded if t is tensor else t for t in reader.inputs]
            between = gs.Variable(f"{tensor.name}_between", np.float16, tensor.shape)
            for source, target in ((tensor, between), (between, rounded)):
                graph.nodes.append(gs.Node("Identity", target.name, {}, [source], [target]))
    graph.toposort()
    result: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    return result


_STORED, _SINGLE = "_half", "_single"


def single_again(model: onnx.ModelProto) -> onnx.ModelProto:
    """Undo `store_half` in memory: float32 constants again, with the values float16 left of them.

    Passes and comparisons that look for constants do not see them behind a Cast.

    Returns:
        The same model, changed in place; constants of an FP16 graph stay as they are.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        stored = constants.get(node.input[0]) if node.op_type == "Cast" else None
        if stored is None or not node.output[0].endswith(_SINGLE):
            continue
        values = numpy_helper.to_array(stored).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        graph.initializer.remove(stored)
        graph.node.remove(node)
    return model


def read_graph(path: Path) -> onnx.ModelProto:
    """A graph with its weights, those stored in half precision as the constants they stand for."""
    return single_again(onnx.load(path))


def quantised_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The linear layers of the blocks and of the fusion, in order."""
    return [node for node in linear_nodes(model) if node.op_type == "MatMul"]


def linear_layers(model: onnx.ModelProto, role: Role) -> dict[str, onnx.NodeProto]:
    """The same by their place, which a layer has in every graph that shares its weight."""
    where = places(model, role)
    return {where[node.name]: node for node in quantised_nodes(model)}
