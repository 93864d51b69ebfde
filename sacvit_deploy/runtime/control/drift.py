"""Detects pictures that differ from those the exit was calibrated with.

There are no labels at run time, but there is the confidence of the first stage. Two tests compare
recent pictures with the calibration, both independent of the threshold in use:

- The share that leaves at the calibrated threshold, by a two-sample z-test.
- The distribution of the confidence, by the population stability index,
  `PSI = sum (p - q) ln(p / q)` over bins (Siddiqi 2006, Credit Risk Scorecards, where 0.1 is a
  change to look at and 0.25 a large one). The same pictures drawn anew give it
  `chi2(bins - 1) * (1/n + 1/m)` (Yurdakul 2018, Statistical Properties of Population Stability
  Index), which says when a given PSI is more than chance.

A shift has to be large enough to matter and too large for chance, at one false alarm in a million
checks, since a stream has no end. Consecutive frames resemble each other and count for less than
their number. Batch means estimate how much less (Geyer 1992, Practical Markov Chain Monte Carlo,
sec. 3.2): the variance of means over blocks, against that of independent pictures.

A window as long as one scene cannot tell a new scene from a lasting shift. So a shift, or too few
independent pictures, first makes the monitor cover a longer time: it keeps every second picture,
then every fourth, and so on. It reports a shift that is still there at every eighth picture.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.errors import warn_caller
from sacvit_deploy.records import HISTOGRAM_BINS, ExitCalibration
from sacvit_deploy.runtime.algorithm import exits

if TYPE_CHECKING:
    from sacvit_deploy.runtime.scheduler import Outcome

    Histogram = NDArray[np.float64]


WINDOW = 1000
CHECK_EVERY = 250
MIN_PICTURES = 500
MIN_EFFECTIVE = 200
MIN_EXIT_SHIFT = 0.05
MIN_PSI = 0.1
CONFIRMED_STRIDE = 8

_CHANCE = 1e-6
_TWO_SIDED = NormalDist().inv_cdf(1 - _CHANCE / 2)
_ONE_SIDED = NormalDist().inv_cdf(1 - _CHANCE)
_BLOCKS = 10
# Smaller bins are joined with the next: the logarithm of a rare bin is mostly chance.
_MIN_BIN_SHARE = 0.05


class DriftWarning(UserWarning):
    """Exit rate or confidence has shifted since the exit was calibrated."""


@dataclass(frozen=True)
class DriftReport:
    """Recent pictures against the calibration record.

    Attributes:
        pictures: Number in the window, which may hold only every second, fourth, ...; at most
            1000.
        effective_pictures: Number of independent pictures with the same information; at most
            `pictures`.
        enough: Whether both tests can be made: 500 pictures, and 200 independent ones.
        eta: The calibrated threshold.
        expected_early_exit_fraction: Share that left at `eta` in the calibration.
        early_exit_fraction: Share of recent pictures that would leave at `eta`.
        exit_rate_z: Difference of the two over its standard error.
        expected_confidence_histogram: Shares of 20 equal bins over [0, 1] in the calibration.
        confidence_histogram: The same for recent pictures.
        psi: Population stability index of the two, over bins that hold 5 % or more.
        psi_limit: Largest index that is no shift.
        exit_rate_shifted: Whether it moved by 5 percentage points or more, and not by chance.
        confidence_shifted: Whether `psi` is above `psi_limit`.
    """

    pictures: int
    effective_pictures: float
    enough: bool
    eta: float
    expected_early_exit_fraction: float
    early_exit_fraction: float
    exit_rate_z: float
    expected_confidence_histogram: tuple[float, ...]
    confidence_histogram: tuple[float, ...]
    psi: float
    psi_limit: float
    exit_rate_shifted: bool
    confidence_shifted: bool

    @property
    def drifted(self) -> bool:
        """Whether anything has shifted."""
        return self.exit_rate_shifted or self.confidence_shifted

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"drifted": self.drifted, **asdict(self)}

    def __str__(self) -> str:
        said = {True: "shifted", False: "not shifted"}
        if not self.enough:
            said = dict.fromkeys(said, "too few to tell")
        return (
            f"Of {self.pictures} recent pictures (worth {self.effective_pictures:.0f} "
            f"independent ones) {self.early_exit_fraction:.1%} exit early at eta {self.eta:g}; "
            f"{self.expected_early_exit_fraction:.1%} did in the calibration: "
            f"{said[self.exit_rate_shifted]}. The population stability index of the confidences "
            f"is {self.psi:.3f}, and up to {self.psi_limit:.3f} is expected: "
            f"{said[self.confidence_shifted]}."
        )


class DriftMonitor:
    """Remembers recent confidences, checks them regularly, and warns once.

    Safe to use from several threads at once.
    """

    def __init__(self, record: ExitCalibration, comparison: Literal[">", ">="]) -> None:
        """Start with an empty window; arguments as in `drift_report`."""
        self._record = record
        self._comparison = comparison
        self._lock = threading.Lock()
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._stride = 1
        self._seen = 0
        self._unchecked = 0
        self._too_few = 0
        self._warned = False

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Add classified pictures, and check after every 250 that were kept.

        A clear shift is reported about 5000 pictures after it began, if it lasts.

        Warns:
            DriftWarning: The pictures have shifted; at most once.
        """
        with self._lock:
            for outcome in outcomes:
                self._seen += 1
                if self._seen % self._stride == 0 and outcome.early_exit_confidence is not None:
                    self._window.append(outcome.early_exit_confidence)
                    self._unchecked += 1
            due = self._unchecked >= CHECK_EVERY and len(self._window) >= MIN_PICTURES
            report = self._check() if due and not self._warned else None
        if report is not None:
            warn_caller(
                f"{report} Accuracy and cost may not be what the calibration says. Look at the "
                "pictures and at what reads them; if they are right, calibrate again with "
                "pictures like them: sacvit-deploy calibrate BUNDLE DATA",
                DriftWarning,
            )

    def report(self) -> DriftReport:
        """Compare the current window."""
        with self._lock:
            window = np.array(self._window)
        return drift_report(window, self._record, self._comparison)

    def _check(self) -> DriftReport | None:
        """Report a shift that has lasted; else cover a longer time if the tests are undecided."""
        self._unchecked = 0
        report = drift_report(np.array(self._window), self._record, self._comparison)
        if report.drifted and self._stride >= CONFIRMED_STRIDE:
            self._warned = True
            return report
        self._too_few = 0 if report.enough else self._too_few + 1
        # While the window holds the time before and after a change, it looks like few independent
        # pictures.
        if report.drifted or self._too_few > WINDOW // CHECK_EVERY:
            self._stride *= 2
            self._too_few = 0
            self._window = deque(list(self._window)[1::2], maxlen=WINDOW)
        return None


def drift_report(
    confidences: NDArray[np.float64], record: ExitCalibration, comparison: Literal[">", ">="]
) -> DriftReport:
    """Compare confidences with a calibration record.

    Args:
        confidences: First-stage confidences at the temperature of the record, in order of time,
            (n,).
        record: Calibration to compare with.
        comparison: Exit comparison of the network.
    """
    pictures = len(confidences)
    effective = effective_count(confidences)
    enough = pictures >= MIN_PICTURES and effective >= MIN_EFFECTIVE
    found = float(exits(confidences, record.eta, comparison).mean()) if pictures else 0.0
    z = _two_share_z(found, effective, record.early_exit_fraction, record.images)
    counts, _ = np.histogram(confidences, HISTOGRAM_BINS, (0.0, 1.0))
    shares = counts / max(1, pictures)
    expected = np.array(record.confidence_histogram)
    psi, limit = _stability(shares, effective, expected, record.images)
    shift = abs(found - record.early_exit_fraction)
    return DriftReport(
        pictures=pictures,
        effective_pictures=effective,
        enough=enough,
        eta=record.eta,
        expected_early_exit_fraction=record.early_exit_fraction,
        early_exit_fraction=found,
        exit_rate_z=z,
        expected_confidence_histogram=record.confidence_histogram,
        confidence_histogram=tuple(shares.tolist()),
        psi=psi,
        psi_limit=limit,
        exit_rate_shifted=enough and shift >= MIN_EXIT_SHIFT and abs(z) > _TWO_SIDED,
        confidence_shifted=enough and psi > limit,
    )


def effective_count(values: NDArray[np.float64]) -> float:
    """Estimate the number of independent values with the same uncertainty of the mean.

    Args:
        values: In order of time, (n,).

    Returns:
        At most n; 1 where all values are equal, which says nothing about the next. By batch means.
    """
    size = len(values) // _BLOCKS
    if size < 2:
        return float(len(values))
    used = values[-size * _BLOCKS :]
    if used.min() == used.max():
        return 1.0
    spread = float(used.var(ddof=1))
    between = float(used.reshape(_BLOCKS, size).mean(axis=1).var(ddof=1))
    return len(values) / max(1.0, between * size / spread)


def _two_share_z(found: float, pictures: float, expected: float, images: int) -> float:
    """Divide the difference of two shares by its pooled standard error."""
    if pictures == 0 or found == expected:
        return 0.0
    pooled = (found * pictures + expected * images) / (pictures + images)
    return float((found - expected) / np.sqrt(pooled * (1 - pooled) * (1 / pictures + 1 / images)))


def _stability(
    found: Histogram, pictures: float, expected: Histogram, images: int
) -> tuple[float, float]:
    """Compute the population stability index of two histograms, and its limit."""
    starts = _joined_bins(expected)
    free = len(starts) - 1
    if pictures == 0 or free == 0:
        return 0.0, MIN_PSI
    p = _smoothed(np.add.reduceat(found, starts), pictures)
    q = _smoothed(np.add.reduceat(expected, starts), images)
    psi = float(((p - q) * np.log(p / q)).sum())
    return psi, max(MIN_PSI, _chi2_limit(free) * (1 / pictures + 1 / images))


def _joined_bins(shares: Histogram) -> list[int]:
    """Find the first bins of runs that each hold 5 % or more."""
    starts, held = [0], 0.0
    for index, share in enumerate(shares.tolist()):
        if held >= _MIN_BIN_SHARE and shares[index:].sum() >= _MIN_BIN_SHARE:
            starts.append(index)
            held = 0.0
        held += share
    return starts


def _smoothed(shares: Histogram, pictures: float) -> Histogram:
    """Add half a picture to each bin, so that an empty one has a logarithm."""
    counts = shares * pictures + 0.5
    return np.asarray(counts / counts.sum())


def _chi2_limit(free: int) -> float:
    """Compute the value chi-square exceeds once in a million (Wilson-Hilferty)."""
    step = 2 / (9 * free)
    return free * float(1 - step + _ONE_SIDED * np.sqrt(step)) ** 3
