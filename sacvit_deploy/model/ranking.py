"""Values that are to be ranked, as numbers without ties.

ONNX defines that of equal values TopK and ArgMax take the lower index first. TensorRT does not
promise it. Where no two values are equal, every backend agrees.

The keys are small whole numbers in float32. An int64 that carries value and index would take fewer
operations, but OpenVINO computes int64 in 32 bits on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ranking_key(values: Tensor) -> Tensor:
    """Count what each value comes before: all smaller ones, and equal ones of a higher index.

    Args:
        values: (..., n), not NaN; n at most 2^24.

    Returns:
        float32 of the same shape; each row has the numbers 0 to n-1, the largest for the first.
    """
    index = torch.arange(values.shape[-1], device=values.device)
    mine, others = values[..., :, None], values[..., None, :]
    behind = (others < mine) | ((others == mine) & (index[:, None] < index[None, :]))
    return behind.to(torch.float32).sum(-1)
