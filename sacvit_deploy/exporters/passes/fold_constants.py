"""Constant subgraphs computed at export."""

from __future__ import annotations

import onnx_graphsurgeon as gs


def fold_constants(graph: gs.Graph) -> int:
    """Fold constant subgraphs: slices of the position tables, the cluster mask, index arithmetic.

    Returns:
        Number of nodes removed.
    """
    before = len(graph.nodes)
    # No size limit: a folded constant replaces tensors of the same size or larger.
    graph.fold_constants(size_threshold=None)
    graph.cleanup()
    return before - len(graph.nodes)
