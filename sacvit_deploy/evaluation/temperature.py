"""One number that makes the confidence of the first stage mean what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SMALLEST, LARGEST = 0.05, 20.0

_GOLDEN = (5**0.5 - 1) / 2
# Of the logarithm, so of the temperature by share.
_TOLERANCE = 1e-6


def negative_log_likelihood(
    logits: NDArray[Any], class_index: NDArray[np.int64], temperature: float
) -> float:
    """Mean over the pictures of minus the log probability of the true class, in nats.

    Args:
        logits: (n, C).
        class_index: True classes, (n,).
        temperature: Divides the logits, above 0.
    """
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    true = np.take_along_axis(scaled, class_index[:, None], axis=1)[:, 0]
    return float((np.log(np.exp(scaled).sum(axis=1)) - true).mean())


def fit_temperature(logits: NDArray[Any], class_index: NDArray[np.int64]) -> float:
    """The temperature in [0.05, 20] with the least negative log likelihood (Guo et al. 2017).

    The likelihood is concave in 1/T, so that there is one valley and golden sections find it. Where
    every answer is right it has no bottom, and the smallest temperature is given.

    Args:
        logits: (n, C).
        class_index: True classes, (n,).
    """
    found = _least(
        lambda log: negative_log_likelihood(logits, class_index, float(np.exp(log))),
        float(np.log(SMALLEST)),
        float(np.log(LARGEST)),
    )
    return float(np.exp(found))


def _least(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is least, by golden sections."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > _TOLERANCE:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
    return (low + high) / 2
