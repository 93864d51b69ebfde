"""Statistics of labelled pictures: intervals, classes, confusions, reliability, temperature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Statistic = Callable[[NDArray[np.int64]], NDArray[Any]]


RESAMPLES = 2000
LEVEL = 0.95
BINS = 15
"""Bins of a reliability diagram, as in Guo et al. 2017."""
SMALLEST, LARGEST = 0.05, 20.0
"""Range in which a temperature is sought."""

# Indices drawn at once: 32 MB.
_DRAWN_AT_ONCE = 1 << 22
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
_GOLDEN = (5**0.5 - 1) / 2
# Width at which the search for the logarithm of the temperature ends.
_TOLERANCE = 1e-6


def bootstrap_intervals(
    statistics: Mapping[str, Statistic], images: int, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """Percentile intervals at 95 % (Efron 1979), all from the same resamples.

    Args:
        statistics: Statistics by name; each maps rows of drawn pictures (r, images) to (r,).
        images: Number of pictures.
        seed: Seed of the draws.
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


def share_interval(share: float, images: int) -> Interval:
    """Wilson's interval at 95 % of a share of pictures (1927, J. Am. Stat. Assoc. 22, p. 209).

    Unlike a bootstrap, it keeps its coverage on few pictures and near 0 and 1 (Brown, Cai and
    DasGupta 2001, "Interval Estimation for a Binomial Proportion").

    Args:
        share: Share of the pictures that count, in [0, 1].
        images: Number of pictures; 0 gives (0, 1).

    Returns:
        Lower and upper end, in [0, 1].
    """
    total = images + _Z**2
    centre = (images * share + _Z**2 / 2) / total
    reach = _Z / total * (images * share * (1 - share) + _Z**2 / 4) ** 0.5
    # Rounding may move an end past the share or out of the range.
    return max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach))


def mean_of(values: NDArray[Any]) -> Statistic:
    """The mean of one value per picture, (images,)."""
    return lambda rows: values[rows].mean(axis=1)


def percentile_of(values: NDArray[Any], percentile: float) -> Statistic:
    """A percentile of one value per picture, (images,)."""
    return lambda rows: np.percentile(values[rows], percentile, axis=1)


@dataclass(frozen=True)
class ClassRow:
    """Results of the pictures of one class.

    Attributes:
        class_index: Index of the class.
        label: Name of the class.
        images: Number of its pictures, at least 1.
        top1: Share of correct answers at the exit.
        early_exit_fraction: Share that exits early; None for a network of one stage.
        top1_early_exit_only: Share of correct answers of the first stage; None for one stage.
        top1_refine_only: Share of correct answers of the second stage; None for one stage.
    """

    class_index: int
    label: str
    images: int
    top1: float
    early_exit_fraction: float | None = None
    top1_early_exit_only: float | None = None
    top1_refine_only: float | None = None


def class_rows(
    true: NDArray[np.int64], labels: Sequence[str], shares: dict[str, NDArray[np.bool_]]
) -> tuple[ClassRow, ...]:
    """One row for every class that has pictures, in class order.

    Args:
        true: Class of each picture, (n,).
        labels: Name of each class.
        shares: Pictures that count for a share, (n,), by the name of a field of `ClassRow`.
    """
    images = np.bincount(true, minlength=len(labels))
    counts = {
        name: np.bincount(true, which.astype(np.float64), minlength=len(labels))
        for name, which in shares.items()
    }
    return tuple(
        ClassRow(
            index,
            labels[index],
            int(images[index]),
            **{name: float(count[index] / images[index]) for name, count in counts.items()},
        )
        for index in np.flatnonzero(images).tolist()
    )


@dataclass(frozen=True)
class Confusion:
    """Pictures of one class that were taken for another, or for itself.

    Attributes:
        true: Class index.
        predicted: Class index.
        images: Number of pictures, at least 1.
    """

    true: int
    predicted: int
    images: int


def confusions(true: NDArray[np.int64], predicted: NDArray[np.int64]) -> tuple[Confusion, ...]:
    """The confusion matrix without its zeros, ordered by true and then by predicted class.

    Args:
        true: Class of each picture, (n,).
        predicted: Answer for each picture, (n,).
    """
    pairs, counts = np.unique(np.stack([true, predicted], axis=1), axis=0, return_counts=True)
    rows = zip(*pairs.T.tolist(), counts.tolist(), strict=True)
    return tuple(Confusion(true, predicted, count) for true, predicted, count in rows)


@dataclass(frozen=True)
class ReliabilityBin:
    """Pictures of about the same confidence.

    Attributes:
        lower: Lower end of the confidence, excluded except in the first bin.
        upper: Upper end of the confidence, included.
        images: Number of pictures; if 0, the two means are 0 as well.
        confidence: Mean confidence.
        accuracy: Share of correct answers.
        accuracy_interval: Its 95 % interval; see `share_interval`.
    """

    lower: float
    upper: float
    images: int
    confidence: float
    accuracy: float
    accuracy_interval: Interval


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy.

    Attributes:
        ece: Expected calibration error: the mean distance of the two, in [0, 1] (Guo et al. 2017,
            "On Calibration of Modern Neural Networks", eq. 3).
        bins: Bins of equal width over [0, 1].
    """

    ece: float
    bins: tuple[ReliabilityBin, ...]


def reliability(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = BINS
) -> Reliability:
    """Compare confidence and accuracy bin by bin.

    Args:
        confidence: Largest probability of each picture, (n,), in (0, 1], n at least 1.
        correct: Whether that class is the true one, (n,).
        bins: Number of bins of equal width, 1 or more.
    """
    # The upper end of a bin belongs to it, so that a confidence of 1 is in the last.
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    filled = np.maximum(images, 1)
    mean = np.bincount(place, confidence, minlength=bins) / filled
    accuracy = np.bincount(place, correct.astype(np.float64), minlength=bins) / filled
    ece = float((np.abs(mean - accuracy) * images).sum() / len(confidence))
    edges = np.linspace(0, 1, bins + 1).tolist()
    shares, counts = accuracy.tolist(), images.tolist()
    intervals = map(share_interval, shares, counts)
    rows = zip(edges, edges[1:], counts, mean.tolist(), shares, intervals, strict=False)
    return Reliability(ece, tuple(ReliabilityBin(*row) for row in rows))


def fit_temperature(logits: NDArray[Any], class_index: NDArray[np.int64]) -> float:
    """Return the temperature in [0.05, 20] of least negative log likelihood (Guo et al. 2017).

    The likelihood is concave in 1/T, so that golden sections find its only maximum. If every answer
    is correct, there is none, and the result is the smallest temperature.

    Args:
        logits: (n, C).
        class_index: True classes, (n,).
    """
    found = _minimum(
        lambda log: negative_log_likelihood(logits, class_index, float(np.exp(log))),
        float(np.log(SMALLEST)),
        float(np.log(LARGEST)),
    )
    return float(np.exp(found))


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


def _minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """Argument of the only minimum of a function, by golden sections."""
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
