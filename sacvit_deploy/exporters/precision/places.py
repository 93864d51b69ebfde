"""Where in the network a node of a graph stands.

Node names come from the exporter and mean nothing to a person. Linear layers and LayerNormalization
do: their order is fixed, since each depends on the one before. Every other node belongs to the last
of them that it depends on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sacvit_deploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx

    from sacvit_deploy.spec import Role

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
