"""Weights to INT8 such that a layer's output changes least.

Frantar et al., "GPTQ" (ICLR 2023), Algorithm 1: the inputs of a linear layer are rounded one after
the other, and what rounding one of them changes in the output is made up for, as far as it can be,
by those that are still to come. Nothing but the second moment of what the layer takes in is needed.
Against rounding to nearest it leaves about a quarter of the squared error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

LEVELS = 127
"""Symmetric INT8: from -127 to 127."""

# Half precision holds nothing smaller, and a scale must not be zero.
_SMALLEST_SCALE = 2.0**-24
_SMALLEST = 1e-8
# Share of the mean of the Hessian's diagonal that is added to it, as in the paper.
_DAMPING = 0.01
# Corrections reach beyond so many inputs only once for all of them, which is far faster.
_BLOCK = 128


@dataclass(frozen=True)
class RoundedWeight:
    """A weight in INT8, one scale for each output.

    Attributes:
        values: (inputs, outputs), int8.
        scale: (outputs,), float32; the weight is `values * scale`.
    """

    values: Array
    scale: Array


def rounded_weight(weight: Array, moment: Array) -> RoundedWeight:
    """Round a linear layer's weight.

    Args:
        weight: (inputs, outputs), float32.
        moment: E[x x^T] of what the layer takes in, (inputs, inputs), float64.
    """
    scale = np.maximum(np.abs(weight).max(axis=0) / LEVELS, _SMALLEST_SCALE)
    hessian = moment.copy()
    mean = float(np.diag(hessian).mean())
    hessian += np.eye(len(hessian)) * max(_DAMPING * mean, _SMALLEST)
    # The largest first, while there are still others to make up for them.
    order = np.argsort(-np.diag(hessian), kind="stable")
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    passed_on = np.linalg.cholesky(inverse).T
    values = np.empty(weight.shape, np.int8)
    values[order] = _one_after_the_other(weight[order].astype(np.float64), scale, passed_on)
    return RoundedWeight(values, scale.astype(np.float32))


def _one_after_the_other(weight: Array, scale: Array, passed_on: Array) -> Array:
    """Algorithm 1 with rows for its columns; `passed_on` is its upper Cholesky factor."""
    values = np.empty(weight.shape, np.int8)
    for start in range(0, len(weight), _BLOCK):
        stop = min(start + _BLOCK, len(weight))
        errors = np.empty((stop - start, weight.shape[1]))
        for row in range(start, stop):
            values[row] = np.clip(np.rint(weight[row] / scale), -LEVELS, LEVELS)
            error = (weight[row] - values[row] * scale) / passed_on[row, row]
            weight[row + 1 : stop] -= np.outer(passed_on[row, row + 1 : stop], error)
            errors[row - start] = error
        weight[stop:] -= passed_on[start:stop, stop:].T @ errors
    return values
