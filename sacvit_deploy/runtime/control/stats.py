"""Statistics of a pipeline: pictures, exits, latency, confidence.

Memory stays constant on an endless stream: latencies are counted in bins whose edges grow by 2 %,
so that a percentile is within 1 % of the true one.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from sacvit_deploy.records import HISTOGRAM_BINS
from sacvit_deploy.spec import Role

if TYPE_CHECKING:
    from sacvit_deploy.runtime.scheduler import Outcome


_PERCENTILES = (0.50, 0.95, 0.99)
_SHORTEST_MS = 1e-3
_LONGEST_MS = 1e5
_GROWTH = math.log(1.02)
_LATENCY_BINS = math.ceil(math.log(_LONGEST_MS / _SHORTEST_MS) / _GROWTH) + 1


@dataclass(frozen=True)
class Latency:
    """Milliseconds per picture.

    Attributes:
        pictures: Number measured.
        latency_ms_mean: Mean, exact.
        latency_ms_p50: Median, within 1 % like the other percentiles.
        latency_ms_p95: 95th percentile.
        latency_ms_p99: 99th percentile.
    """

    pictures: int
    latency_ms_mean: float
    latency_ms_p50: float
    latency_ms_p95: float
    latency_ms_p99: float


@dataclass(frozen=True)
class PipelineStats:
    """Everything a pipeline counted since it was made, or since `reset`.

    The latency of a picture is its share of the time its batch took in the stages it went through.
    Waiting for other pictures of a stream and preprocessing do not count.

    Attributes:
        pictures: Number classified.
        early_exit_fraction: Share that left after the first stage; None before the first picture,
            and for a network of one stage.
        stages: Latency by the stage a picture left from: `early_exit`, `refine` (both stages
            together), `single`; only those that occurred.
        latency_ms_mean: Mean of all pictures; None before the first.
        preprocess: Time to read and prepare a picture; None before the first.
        confidence_histogram: Share of pictures in each of 20 equal bins of the first stage's
            confidence over [0, 1], as in a calibration record; None where
            `early_exit_fraction` is.
    """

    pictures: int
    early_exit_fraction: float | None
    stages: Mapping[Role, Latency]
    latency_ms_mean: float | None
    preprocess: Latency | None
    confidence_histogram: tuple[float, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


class Stats:
    """Counts pictures as they are classified; safe to use from several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def __repr__(self) -> str:
        found = self.snapshot()
        early, mean = found.early_exit_fraction, found.latency_ms_mean
        told = [f"{found.pictures} pictures"]
        told += [] if early is None else [f"{early:.1%} left early"]
        told += [] if mean is None else [f"{mean:.2f} ms mean"]
        return f"<Stats: {', '.join(told)}>"

    def reset(self) -> None:
        """Forget everything so far."""
        with self._lock:
            self._stages: defaultdict[Role, _Times] = defaultdict(_Times)
            self._preprocess = _Times()
            self._confidences = [0] * HISTOGRAM_BINS

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Count classified pictures."""
        with self._lock:
            for outcome in outcomes:
                self._stages[outcome.stage].add(outcome.early_ms + outcome.refine_ms)
                if outcome.early_exit_confidence is not None:
                    self._confidences[confidence_bin(outcome.early_exit_confidence)] += 1

    def add_preprocess(self, ms: float) -> None:
        """Count the milliseconds it took to read and prepare a picture."""
        with self._lock:
            self._preprocess.add(ms)

    def snapshot(self) -> PipelineStats:
        """Return everything counted so far, at one moment."""
        with self._lock:
            stages = {stage: times.latency() for stage, times in self._stages.items()}
            total_ms = sum(times.total_ms for times in self._stages.values())
            preprocess = self._preprocess.latency() if self._preprocess.count else None
            confidences = tuple(self._confidences)
        pictures = sum(latency.pictures for latency in stages.values())
        two_stage = sum(confidences)
        early = stages["early_exit"].pictures if "early_exit" in stages else 0
        return PipelineStats(
            pictures=pictures,
            early_exit_fraction=early / two_stage if two_stage else None,
            stages=stages,
            latency_ms_mean=total_ms / pictures if pictures else None,
            preprocess=preprocess,
            confidence_histogram=tuple(n / two_stage for n in confidences) if two_stage else None,
        )


def confidence_bin(confidence: float) -> int:
    """Find the bin, of 20 equal ones over [0, 1]; 1 itself belongs to the last."""
    return min(int(confidence * HISTOGRAM_BINS), HISTOGRAM_BINS - 1)


class _Times:
    """A histogram of milliseconds with bins of equal ratio."""

    def __init__(self) -> None:
        self.count = 0
        self.total_ms = 0.0
        self._bins = [0] * _LATENCY_BINS

    def add(self, ms: float) -> None:
        self.count += 1
        self.total_ms += ms
        inside = min(max(ms, _SHORTEST_MS), _LONGEST_MS)
        self._bins[int(math.log(inside / _SHORTEST_MS) / _GROWTH)] += 1

    def latency(self) -> Latency:
        """Summarize what was added; at least one picture."""
        seen = list(accumulate(self._bins))
        # The first bin that reaches a share of the count, and its middle by ratio.
        reached = (bisect_left(seen, math.ceil(share * self.count)) for share in _PERCENTILES)
        percentiles = (_SHORTEST_MS * math.exp((index + 0.5) * _GROWTH) for index in reached)
        return Latency(self.count, self.total_ms / self.count, *percentiles)
