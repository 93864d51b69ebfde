"""How far a mean over pictures may be from what other pictures would give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Interval = tuple[float, float]
    Statistic = Callable[[NDArray[np.int64]], NDArray[Any]]

RESAMPLES = 2000
LEVEL = 0.95

# Indices drawn at once: 32 MB.
_DRAWN_AT_ONCE = 1 << 22


def bootstrap_intervals(
    statistics: Mapping[str, Statistic], images: int, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """Percentile intervals at 95 % (Efron 1979), all from the same resamples.

    Args:
        statistics: By name; each takes rows of drawn pictures (r, images) and gives (r,).
        images: Pictures there are.
        seed: Of the draws.
        resamples: Data sets drawn, each of `images` pictures with replacement.

    Returns:
        Lower and upper end of each statistic.
    """
    generator = np.random.default_rng(seed)
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in statistics}
    step = max(1, _DRAWN_AT_ONCE // images)
    for start in range(0, resamples, step):
        rows = generator.integers(0, images, (min(step, resamples - start), images))
        for name, statistic in statistics.items():
            found[name].append(statistic(rows))
    tails = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
    ends = {name: np.percentile(np.concatenate(parts), tails) for name, parts in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def mean_of(values: NDArray[Any]) -> Statistic:
    """The mean of one value per picture, (images,)."""
    return lambda rows: values[rows].mean(axis=1)


def percentile_of(values: NDArray[Any], percentile: float) -> Statistic:
    """A percentile of one value per picture, (images,)."""
    return lambda rows: np.percentile(values[rows], percentile, axis=1)
