"""The half-size step by scales instead of sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

_SIZES_INPUT = 3


def static_resize(graph: gs.Graph) -> int:
    """Replace Resize(sizes=[Shape(batch), 3, H/2, W/2]) by Resize(scales=[1, 1, 1/2, 1/2]).

    The sizes need the batch at run time, so the exporter builds them with Shape, Slice and Concat.
    Scales are constants, so that an engine builder sees a Resize of fixed geometry.

    Returns:
        Number of Resize nodes changed.
    """
    changed = 0
    for node in graph.nodes:
        if node.op == "Resize" and len(node.inputs) > _SIZES_INPUT:
            scales = gs.Constant(f"{node.name}_scales", _scales(node))
            node.inputs = [*node.inputs[:2], scales]
            changed += 1
    return changed


def _scales(node: gs.Node) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Scales from the static height and width on both sides."""
    before, after = node.inputs[0].shape[-2:], node.outputs[0].shape[-2:]
    ratios = [new / old for new, old in zip(after, before, strict=True)]
    return np.array([1, 1, *ratios], dtype=np.float32)
