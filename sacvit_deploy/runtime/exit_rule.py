"""When the first stage is sure enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities along the last axis, temperature 1.

    In float64, so that a threshold is compared with the confidence and not with its rounding: in
    float32 everything above 1 - 3e-8 is 1.
    """
    exponentials = np.exp(_below_maximum(logits))
    shares: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares


def confidence(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """The largest softmax probability of each row, (B, C) to (B,).

    Args:
        logits: (B, C).
        temperature: The logits are divided by it first, above 0; more than 1 makes the network
            less sure, less than 1 surer (Guo et al. 2017, eq. 9).
    """
    scaled = _below_maximum(logits) / temperature
    largest: NDArray[np.float64] = 1.0 / np.exp(scaled).sum(axis=-1)
    return largest


def exits(
    confidence: NDArray[np.float64], eta: float, comparison: Literal[">", ">="]
) -> NDArray[np.bool_]:
    """Which rows leave after the first stage.

    A confidence is never 0, so every row leaves at eta 0 under both comparisons. At eta 1 none
    does, by rule: a confidence may round to exactly 1, and eta 1 means the second stage alone.

    Args:
        confidence: (B,), in (0, 1].
        eta: The threshold, in [0, 1].
        comparison: `>` in SAC-ViT, `>=` in CF-ViT.
    """
    if eta >= 1:
        return np.zeros(confidence.shape, dtype=np.bool_)
    return confidence > eta if comparison == ">" else confidence >= eta


def _below_maximum(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Logits less the largest of their row, so that no exponential overflows."""
    wide = logits.astype(np.float64)
    below: NDArray[np.float64] = wide - wide.max(axis=-1, keepdims=True)
    return below
