"""The decisions of a two-stage network, as pure functions on arrays.

Whether the first stage is confident enough for a picture to leave, which coarse tokens the second
stage looks at in full resolution, and where these lie in the fine grid.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.windows import OUTSIDE, window_members, window_sums


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Compute probabilities along the last axis, at temperature 1.

    In float64, because in float32 every probability above 1 - 3e-8 is 1, and a threshold would be
    compared with the rounding.
    """
    exponentials = np.exp(_below_maximum(logits))
    shares: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares


def confidence(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """Compute the largest softmax probability of each row, (B, C) to (B,).

    Args:
        logits: (B, C).
        temperature: Divides the logits first, above 0. More than 1 lowers the confidence, less
            than 1 raises it (Guo et al. 2017, eq. 9).
    """
    values = _below_maximum(logits)
    if temperature != 1.0:
        values /= temperature
    np.exp(values, out=values)
    # Functions of numpy in Python cost twice as much after a graph has used the caches.
    largest: NDArray[np.float64] = 1.0 / np.add.reduce(values, axis=-1)
    return largest


def exits(
    confidence: NDArray[np.float64], eta: float, comparison: Literal[">", ">="]
) -> NDArray[np.bool_]:
    """Decide which rows leave after the first stage.

    A confidence is never 0, so every row leaves at eta 0 under both comparisons. At eta 1 none
    does, by rule: a confidence may round to exactly 1, and eta 1 means the second stage alone.

    Args:
        confidence: (B,), in (0, 1].
        eta: Exit threshold, in [0, 1].
        comparison: `>` in SAC-ViT, `>=` in the other families.
    """
    if eta >= 1:
        return np.zeros(confidence.shape, dtype=np.bool_)
    return confidence > eta if comparison == ">" else confidence >= eta


def select_tokens(
    score: NDArray[Any], config: ModelConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the coarse tokens by score; of equal scores the lowest index wins.

    With a window (LF-ViT), all targets lie in the best one; the tokens outside come last, in order.

    Args:
        score: (B, N), finite, 0 or more.
        config: The network; says how many are targets, and where they may lie.

    Returns:
        Targets (B, M) and non-targets (B, N-M), each best first.
    """
    if config.stages.window is not None:
        score = np.where(window_tokens(score, config), score, OUTSIDE)
    # Negated, because numpy sorts upwards and reversing a stable sort would put ties backwards.
    order = (-score).argsort(axis=1, kind="stable").astype(np.int64, copy=False)
    targets = config.num_targets
    return order[:, :targets], order[:, targets:]


def window_tokens(score: NDArray[Any], config: ModelConfig) -> NDArray[np.bool_]:
    """Tell which coarse tokens lie in the best window, (B, N); all, if there are no windows."""
    side = config.stages.window
    if side is None:
        return np.ones(score.shape, np.bool_)
    grid = config.coarse_grid
    best = window_sums(score, grid, side).argmax(axis=1)
    inside: NDArray[np.bool_] = window_members(grid, side)[best]
    return inside


def fine_index(coarse: NDArray[np.int64], coarse_columns: int) -> NDArray[np.int64]:
    """Find the four children of each coarse token (Hu et al., SAC-ViT, Eq. 11).

    The token at row r and column c of the coarse grid covers rows 2r, 2r+1 and columns 2c, 2c+1 of
    the fine grid, whose rows are twice as long.

    Args:
        coarse: Coarse indices, (B, M).
        coarse_columns: H1, the columns of the coarse grid.

    Returns:
        Fine indices, (B, 4M), child by child, target by target.
    """
    first = 4 * coarse - 2 * (coarse % coarse_columns)
    below = 2 * coarse_columns
    children = first[..., None] + np.array([0, 1, below, below + 1], dtype=np.int64)
    return children.reshape(*coarse.shape[:-1], -1)


def _below_maximum(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Subtract the largest logit of each row, so that no exponential overflows."""
    wide = logits.astype(np.float64)
    wide -= np.maximum.reduce(wide, axis=-1, keepdims=True)
    return wide
