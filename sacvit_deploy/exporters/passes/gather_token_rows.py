"""Whole token rows gathered at once."""

from __future__ import annotations

import onnx_graphsurgeon as gs


def gather_token_rows(graph: gs.Graph) -> int:
    """Replace Unsqueeze, Expand, GatherElements by Unsqueeze, GatherND(batch_dims=1).

    torch.gather takes an index for every element of a row, all D of them equal. GatherND takes one
    index per row and copies the row.

    Returns:
        Number of gathers changed.
    """
    changed = 0
    for node in list(graph.nodes):
        if node.op != "GatherElements" or node.attrs.get("axis") != 1:
            continue
        expand = _producer(node.inputs[1], "Expand")
        if expand is None or _producer(expand.inputs[0], "Unsqueeze") is None:
            continue
        node.op, node.attrs = "GatherND", {"batch_dims": 1}
        node.inputs[1] = expand.inputs[0]
        changed += 1
    return changed


def _producer(tensor: gs.Tensor, op: str) -> gs.Node | None:
    """The node that makes a tensor, if it is an `op`."""
    return next((node for node in tensor.inputs if node.op == op), None)
