"""Values that are to be ranked, as integers without ties.

ONNX defines that of equal values TopK and ArgMax take the lower index first. TensorRT does not
promise it. Where no two values are equal, every backend agrees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_KEY_BITS = 62  # of int64, without the sign and one to spare


def ranking_key(values: Tensor, bound: float) -> Tensor:
    """Carry value and index in one integer: larger with the value, then with a lower index.

    Values are compared in steps of 2^-f, where f = 62 - ceil(log2 n) - ceil(log2 bound): 56 for 49
    scores. Every float32 from 2^(23 - f) on, in size, is a whole number of steps. Smaller ones are
    rounded towards zero, and tie if they fall into one step.

    Args:
        values: (..., n), from -bound to bound.
        bound: 1 or more.

    Returns:
        int64 of the same shape; no two of a row are equal.
    """
    count = values.shape[-1]
    fraction = _KEY_BITS - (count - 1).bit_length() - math.ceil(math.log2(bound))
    # A product with a power of two is exact. Under autocast half precision could not hold it.
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    steps = (wide * 2.0**fraction).to(torch.int64)
    return steps * count + torch.arange(count - 1, -1, -1, device=values.device)
