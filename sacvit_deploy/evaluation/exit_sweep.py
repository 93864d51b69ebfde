"""What a network is worth at one exit threshold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sacvit_deploy.families.config import mean_macs_g
from sacvit_deploy.manifest import HISTOGRAM_BINS, CalibrationPoint
from sacvit_deploy.runtime.algorithm import confidence, exits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sacvit_deploy.evaluation.answers import StageAnswers
    from sacvit_deploy.families.config import ModelConfig

    Floats = NDArray[np.float64]


EtaSource = Literal["given", "bundle", "calibrated", "fp32", "sweep"]


@dataclass(frozen=True)
class Exit:
    """When the first stage is sure enough.

    Attributes:
        eta: Threshold, in [0, 1].
        temperature: Of the confidence, above 0.
        source: `given` by the user; the default of the `bundle`; `calibrated` for the precision
            and runtime at hand; that of `fp32`, for comparison; or a point of a `sweep`.
    """

    eta: float
    temperature: float = 1.0
    source: EtaSource = "given"


@dataclass(frozen=True)
class Latency:
    """Of one picture at batch 1, in milliseconds.

    Attributes:
        mean: Over the pictures.
        p50: Median.
        p95: 95th percentile.
    """

    mean: float
    p50: float
    p95: float

    @classmethod
    def of(cls, milliseconds: NDArray[np.float64]) -> Latency:
        """Of the latency of each picture, (n,), n at least 1."""
        p50, p95 = np.percentile(milliseconds, (50, 95)).tolist()
        return cls(float(milliseconds.mean()), p50, p95)

    def to_dict(self) -> dict[str, float]:
        """JSON-ready, the unit in the names."""
        return {
            "latency_ms_mean": self.mean,
            "latency_ms_p50": self.p50,
            "latency_ms_p95": self.p95,
        }


@dataclass(frozen=True)
class OperatingPoint:
    """The mixture of both stages at one threshold.

    Attributes:
        exit: Threshold, temperature, and where they come from; None for a network of one stage.
        top1: Share of right answers, in [0, 1].
        early_exit_fraction: Share that leaves after the first stage; None for one stage.
        early_right_fraction: Share that leaves after the first stage and is right; of all pictures.
        macs_mean_g: Mean cost of a picture, in 1e9 multiply-accumulates.
        latency: Of the mixture.
    """

    exit: Exit | None
    top1: float
    early_exit_fraction: float | None
    early_right_fraction: float | None
    macs_mean_g: float
    latency: Latency

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, by the contract of `evaluate`; null where there is one stage."""
        fraction = self.early_exit_fraction
        return {
            "eta": self.exit and self.exit.eta,
            "eta_source": self.exit and self.exit.source,
            "temperature": self.exit and self.exit.temperature,
            "top1": self.top1,
            "early_exit_fraction": fraction,
            "refine_fraction": None if fraction is None else 1 - fraction,
            "early_right_fraction": self.early_right_fraction,
            "macs_mean_g": self.macs_mean_g,
            **self.latency.to_dict(),
        }


def operating_point(sweep: ExitSweep, exit_: Exit) -> OperatingPoint:
    """Accuracy, cost and latency of the mixture of both stages at a threshold.

    Args:
        sweep: The pictures by their confidence at the temperature of `exit_`.
        exit_: The threshold.
    """
    index = sweep.index_of(exit_.eta)
    return OperatingPoint(
        exit=exit_,
        top1=float(sweep.top1[index]),
        early_exit_fraction=float(sweep.early_exit_fraction[index]),
        early_right_fraction=float((sweep.leaves(index) & sweep.early_right).mean()),
        macs_mean_g=float(sweep.macs_mean_g[index]),
        latency=Latency.of(sweep.latency_ms(index)),
    )


def one_stage_point(answers: StageAnswers, config: ModelConfig) -> OperatingPoint:
    """The same of a network of one stage, where there is nothing to choose."""
    right = answers.decisions.early_logits.argmax(1) == answers.class_index
    return OperatingPoint(
        exit=None,
        top1=float(right.mean()),
        early_exit_fraction=None,
        early_right_fraction=None,
        macs_mean_g=mean_macs_g(config, 0),
        latency=Latency.of(answers.early_ms),
    )


LARGEST_CURVE = 101


@dataclass(frozen=True)
class ExitSweep:
    """What n pictures give at every threshold that makes a difference.

    A candidate is a number of pictures that leave early; m of them are possible. They stand by
    ascending threshold: the first is eta 0, where all leave, and the last is eta 1.

    Attributes:
        confidence: Of the first stage, ascending, (n,); the other arrays of n are in its order.
        early_right: Whether the first stage is right, (n,).
        late_right: Whether the second is, (n,).
        early_ms: Latency of a picture that leaves early, (n,).
        late_ms: Latency of one that does not, (n,).
        stay: Pictures that do not leave, for each candidate, (m,); ascending.
        eta: A threshold of each candidate, (m,): half way between the two confidences it parts.
        macs_g: Cost of a picture that leaves early, and of one that does not, in 10^9
            multiply-accumulates.
        comparison: How the network compares a confidence with a threshold.
    """

    confidence: Floats
    early_right: NDArray[np.bool_]
    late_right: NDArray[np.bool_]
    early_ms: Floats
    late_ms: Floats
    stay: NDArray[np.int64]
    eta: Floats
    macs_g: tuple[float, float]
    comparison: Literal[">", ">="]

    @property
    def images(self) -> int:
        """Pictures, n."""
        return len(self.confidence)

    @cached_property
    def top1(self) -> Floats:
        """Share of right answers of each candidate, (m,)."""
        return _of_mixture(self.early_right, self.late_right, self.stay)

    @cached_property
    def early_exit_fraction(self) -> Floats:
        """Share of pictures that leave early, (m,); descending."""
        return np.asarray((self.images - self.stay) / self.images)

    @cached_property
    def macs_mean_g(self) -> Floats:
        """Mean cost of a picture in 10^9 multiply-accumulates, (m,); ascending."""
        early, late = self.macs_g
        return np.asarray(early + (late - early) * self.stay / self.images)

    @cached_property
    def latency_ms_mean(self) -> Floats:
        """Mean latency of a picture, (m,); ascending."""
        return _of_mixture(self.early_ms, self.late_ms, self.stay)

    @property
    def late_top1(self) -> float:
        """Share of right answers of the second stage alone."""
        return float(self.late_right.mean())

    def index_of(self, eta: float) -> int:
        """The candidate that a threshold makes, whatever data it was found on.

        Args:
            eta: In [0, 1].
        """
        staying = int((~exits(self.confidence, eta, self.comparison)).sum())
        return int(np.searchsorted(self.stay, staying))

    def right(self, index: int) -> NDArray[np.bool_]:
        """Whether each picture is answered rightly at one candidate, (n,)."""
        return np.where(self._stays(index), self.late_right, self.early_right)

    def latency_ms(self, index: int) -> Floats:
        """Latency of each picture at one candidate, (n,)."""
        return np.where(self._stays(index), self.late_ms, self.early_ms)

    def leaves(self, index: int) -> NDArray[np.bool_]:
        """Whether each picture leaves early at one candidate, (n,)."""
        return ~self._stays(index)

    def point(self, index: int) -> CalibrationPoint:
        """Everything about one candidate."""
        return CalibrationPoint(
            eta=float(self.eta[index]),
            top1=float(self.top1[index]),
            early_exit_fraction=float(self.early_exit_fraction[index]),
            macs_mean_g=float(self.macs_mean_g[index]),
            latency_ms_mean=float(self.latency_ms_mean[index]),
            latency_ms_p95=float(np.percentile(self.latency_ms(index), 95)),
        )

    def curve(self, chosen: int) -> tuple[CalibrationPoint, ...]:
        """At most 101 candidates, both ends and the chosen one among them, by ascending eta."""
        last = len(self.eta) - 1
        spread = np.linspace(0, last, min(LARGEST_CURVE - 1, last + 1)).round().astype(int)
        return tuple(map(self.point, sorted({*spread.tolist(), chosen})))

    def histogram(self) -> tuple[float, ...]:
        """Share of pictures in each of 20 equal bins of the confidence over [0, 1]."""
        counts, _ = np.histogram(self.confidence, bins=HISTOGRAM_BINS, range=(0, 1))
        return tuple((counts / self.images).tolist())

    def _stays(self, index: int) -> NDArray[np.bool_]:
        """The least confident pictures stay."""
        return np.asarray(np.arange(self.images) < self.stay[index])


def sweep_exits(answers: StageAnswers, config: ModelConfig, temperature: float = 1.0) -> ExitSweep:
    """Put the pictures in the order in which a rising threshold keeps them.

    Args:
        answers: What both stages say.
        config: Of the network, which has two stages.
        temperature: Of the exit's confidence, above 0.
    """
    decisions, truth = answers.decisions, answers.class_index
    sure = confidence(decisions.early_logits, temperature)
    order = np.argsort(sure, kind="stable")
    levels, counts = np.unique(sure, return_counts=True)
    return ExitSweep(
        confidence=sure[order],
        early_right=(decisions.early_logits.argmax(1) == truth)[order],
        late_right=(decisions.refined_logits.argmax(1) == truth)[order],
        early_ms=answers.early_ms[order],
        late_ms=(answers.early_ms + answers.refine_ms)[order],
        stay=np.concatenate([[0], np.cumsum(counts)]),
        eta=np.concatenate([[0.0], _between(levels, config.stages.exit_comparison), [1.0]]),
        macs_g=(mean_macs_g(config, 0.0), mean_macs_g(config, 1.0)),
        comparison=config.stages.exit_comparison,
    )


def _between(levels: Floats, comparison: str) -> Floats:
    """Thresholds that part neighbours, (k,) ascending to (k - 1,)."""
    low, high = levels[:-1], levels[1:]
    middle = low + (high - low) / 2
    # Where no number lies between them, one of the two is on the right side of the comparison.
    return np.where((low < middle) & (middle < high), middle, low if comparison == ">" else high)


def _of_mixture(early: NDArray[Any], late: NDArray[Any], stay: NDArray[np.int64]) -> Floats:
    """Mean over all pictures, when the first `stay` of them are late and the others early."""
    gain = np.concatenate([[0.0], np.cumsum(late.astype(np.float64) - early)])
    return np.asarray((early.sum() + gain[stay]) / len(early))
