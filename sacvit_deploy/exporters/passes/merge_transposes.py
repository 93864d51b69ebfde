"""Move the axes of a tensor once, not twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def merge_transposes(graph: gs.Graph) -> int:
    """Replace Transpose, Transpose by one Transpose.

    The exporter merges them itself unless the first had two readers, as the key of a block with a
    class row had: the attention and the class row.

    Returns:
        Number of Transpose nodes that now read past another.
    """
    changed = 0
    for node in graph.nodes:
        producers = node.inputs[0].inputs if node.op == "Transpose" else []
        if not producers or producers[0].op != "Transpose":
            continue
        first = producers[0]
        node.attrs["perm"] = [first.attrs["perm"][axis] for axis in node.attrs["perm"]]
        node.inputs = [first.inputs[0]]
        changed += 1
    return changed
