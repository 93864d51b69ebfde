"""Compute at export what does not depend on the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def fold_constants(graph: gs.Graph) -> int:
    """Fold constant subgraphs: slices of the position tables, the cluster mask, index arithmetic.

    Returns:
        Number of nodes removed.
    """
    before = len(graph.nodes)
    # No size limit: what is folded here replaces a tensor of the same size or larger.
    graph.fold_constants(size_threshold=None)
    graph.cleanup(remove_unused_graph_inputs=False)
    return before - len(graph.nodes)
