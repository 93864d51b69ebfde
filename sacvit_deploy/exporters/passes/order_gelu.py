"""GELU in the order that backends fuse."""

from __future__ import annotations

import onnx_graphsurgeon as gs


def order_gelu(graph: gs.Graph) -> int:
    """Replace x * (0.5 * (1 + erf)) by (x * (1 + erf)) * 0.5.

    The exporter writes the first. ONNX Runtime fuses only the second, together with the bias before
    it. Halving is exact, so that the result is the same to the last bit.

    Returns:
        Number of GELUs changed.
    """
    changed = 0
    for outer in graph.nodes:
        inner = next((t.inputs[0] for t in outer.inputs if _is_half_of_erf(t)), None)
        if outer.op != "Mul" or inner is None:
            continue
        x = next(tensor for tensor in outer.inputs if tensor is not inner.outputs[0])
        half = next(tensor for tensor in inner.inputs if isinstance(tensor, gs.Constant))
        one_and_erf = next(tensor for tensor in inner.inputs if tensor is not half)
        inner.inputs = [x, one_and_erf]
        outer.inputs = [inner.outputs[0], half]
        changed += 1
    return changed


def _is_half_of_erf(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant times (a constant plus Erf), and has one reader."""
    if len(tensor.outputs) != 1 or not _made_by(tensor, "Mul"):
        return False
    factors = tensor.inputs[0].inputs
    sums = [factor for factor in factors if _made_by(factor, "Add")]
    constant = any(isinstance(factor, gs.Constant) for factor in factors)
    return constant and any(_made_by(t, "Erf") for s in sums for t in s.inputs[0].inputs)


def _made_by(tensor: gs.Tensor, op: str) -> bool:
    return bool(tensor.inputs) and tensor.inputs[0].op == op
