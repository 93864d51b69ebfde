"""Accuracy, cost and latency of both stages at every exit threshold that makes a difference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.evaluation.statistics import Interval, share_interval
from sacvit_deploy.families import family_named
from sacvit_deploy.families.config import ModelConfig, graph_macs, mean_macs_g
from sacvit_deploy.records import HISTOGRAM_BINS, CalibrationPoint
from sacvit_deploy.runtime.algorithm import confidence, exits

if TYPE_CHECKING:
    from sacvit_deploy.evaluation.answers import StageAnswers

    Floats = NDArray[np.float64]
    Classes = NDArray[np.int64]


LARGEST_CURVE = 101

_GIGA = 1e9

ExitSource = Literal["given", "bundle", "calibrated", "fp32", "sweep"]

_NOTES = {
    "bundle": "default of the bundle",
    "calibrated": "calibrated for this precision",
    "fp32": "threshold of FP32",
}
# What a network of one stage does not have, in JSON.
_OF_TWO_STAGES = (
    *("eta", "eta_source", "temperature"),
    *("early_exit_fraction", "refine_fraction", "early_right_fraction"),
)


@dataclass(frozen=True)
class Exit:
    """An exit threshold to evaluate.

    Attributes:
        eta: Threshold, in [0, 1].
        temperature: Divides the logits of the first stage before the exit decision, above 0.
        source: `given` by the user; default of the `bundle`; `calibrated` for this precision and
            backend; that of `fp32`, for comparison; a point of a `sweep`. None for a network of
            one stage, where eta is 1.
    """

    eta: float
    temperature: float = 1.0
    source: ExitSource | None = "given"


@dataclass(frozen=True)
class OperatingPoint(CalibrationPoint):
    """Both stages at one exit, in more detail than the bundle stores.

    For a network of one stage `eta` is 1 and `early_exit_fraction` 0: no picture exits early.

    Attributes:
        temperature: See `Exit`.
        source: See `Exit`.
        top1_interval: 95 % interval of `top1`; see `share_interval`.
        top5: Share of pictures whose class is among the five best, in [0, 1].
        early_right_fraction: Share of all pictures that exits early with a correct answer.
        latency_ms_p50: Median latency of a picture, in milliseconds.
    """

    temperature: float
    source: ExitSource | None
    top1_interval: Interval
    top5: float
    early_right_fraction: float
    latency_ms_p50: float

    @property
    def note(self) -> str:
        """Origin of the threshold, in words; empty if it was given."""
        return _NOTES.get(self.source or "", "")

    def to_dict(self) -> dict[str, float | str | Interval | None]:
        """Return the JSON document of `evaluate`; null for what one stage does not have."""
        document: dict[str, float | str | Interval | None] = {
            "eta": self.eta,
            "eta_source": self.source,
            "temperature": self.temperature,
            "top1": self.top1,
            "top1_interval": self.top1_interval,
            "top5": self.top5,
            "early_exit_fraction": self.early_exit_fraction,
            "refine_fraction": 1 - self.early_exit_fraction,
            "early_right_fraction": self.early_right_fraction,
            "macs_mean_g": self.macs_mean_g,
            **self.latency_ms(),
        }
        return document if self.source else {**document, **dict.fromkeys(_OF_TWO_STAGES)}

    def latency_ms(self) -> dict[str, float]:
        """Return mean, median and 95th percentile by their JSON keys."""
        return {
            "latency_ms_mean": self.latency_ms_mean,
            "latency_ms_p50": self.latency_ms_p50,
            "latency_ms_p95": self.latency_ms_p95,
        }


@dataclass(frozen=True)
class ExitSweep:
    """Both stages on n pictures at every threshold that makes a difference.

    A candidate is a number of pictures that exit early; m of them are possible. They are in
    ascending order of threshold: at the first, eta 0, all leave; at the last, eta 1, none does.

    Attributes:
        confidence: Confidence of the first stage, ascending, (n,). The other arrays of n are in its
            order.
        true_class: True class, (n,).
        early_class: Answer of the first stage, (n,).
        refined_class: Answer of the second stage, (n,).
        in_top5: Whether the true class is among the five best of the first stage, and of the second
            one, (2, n).
        early_ms: Latency of a picture that exits early, (n,).
        late_ms: Latency of a picture that is refined, (n,).
        num_refined: Pictures that do not exit early, of each candidate, (m,), ascending.
        eta: A threshold of each candidate, (m,): half way between the two confidences it separates.
        macs_g: Cost of a picture that exits early, and of one that is refined, in 10^9
            multiply-accumulates.
        comparison: How the network compares a confidence with a threshold.
    """

    confidence: Floats
    true_class: Classes
    early_class: Classes
    refined_class: Classes
    in_top5: NDArray[np.bool_]
    early_ms: Floats
    late_ms: Floats
    num_refined: NDArray[np.int64]
    eta: Floats
    macs_g: tuple[float, float]
    comparison: Literal[">", ">="]

    @property
    def images(self) -> int:
        """Number of pictures, n."""
        return len(self.confidence)

    @cached_property
    def early_correct(self) -> NDArray[np.bool_]:
        """Whether the first stage is correct, (n,)."""
        return np.asarray(self.early_class == self.true_class)

    @cached_property
    def refined_correct(self) -> NDArray[np.bool_]:
        """Whether the second stage is correct, (n,)."""
        return np.asarray(self.refined_class == self.true_class)

    @property
    def refine_top1(self) -> float:
        """Accuracy of the second stage alone."""
        return float(self.refined_correct.mean())

    @cached_property
    def top1(self) -> Floats:
        """Accuracy of each candidate, (m,)."""
        return _mixed_mean(self.early_correct, self.refined_correct, self.num_refined)

    @cached_property
    def early_exit_fraction(self) -> Floats:
        """Share of pictures that exit early, (m,), descending."""
        return np.asarray((self.images - self.num_refined) / self.images)

    @cached_property
    def macs_mean_g(self) -> Floats:
        """Mean cost of a picture in 10^9 multiply-accumulates, (m,), ascending."""
        early, late = self.macs_g
        return np.asarray(early + (late - early) * self.num_refined / self.images)

    @cached_property
    def latency_ms_mean(self) -> Floats:
        """Mean latency of a picture, (m,), ascending."""
        return _mixed_mean(self.early_ms, self.late_ms, self.num_refined)

    def index_of(self, eta: float) -> int:
        """Return the candidate of a threshold, which may come from other data.

        Args:
            eta: Threshold, in [0, 1].
        """
        refined = int((~exits(self.confidence, eta, self.comparison)).sum())
        return int(np.searchsorted(self.num_refined, refined))

    def exits_early(self, index: int) -> NDArray[np.bool_]:
        """Whether each picture exits early at one candidate, (n,): the most confident do."""
        return np.asarray(np.arange(self.images) >= self.num_refined[index])

    def predicted(self, index: int) -> Classes:
        """Answer for each picture at one candidate, (n,)."""
        return np.where(self.exits_early(index), self.early_class, self.refined_class)

    def correct(self, index: int) -> NDArray[np.bool_]:
        """Whether the answer for each picture is correct at one candidate, (n,)."""
        return np.asarray(self.predicted(index) == self.true_class)

    def latency_ms(self, index: int) -> Floats:
        """Latency of each picture at one candidate, (n,)."""
        return np.where(self.exits_early(index), self.early_ms, self.late_ms)

    def point(self, index: int) -> CalibrationPoint:
        """Sum up one candidate."""
        return CalibrationPoint(
            eta=float(self.eta[index]),
            top1=float(self.top1[index]),
            early_exit_fraction=float(self.early_exit_fraction[index]),
            macs_mean_g=float(self.macs_mean_g[index]),
            latency_ms_mean=float(self.latency_ms_mean[index]),
            latency_ms_p95=float(np.percentile(self.latency_ms(index), 95)),
        )

    def operating_point(self, chosen: Exit) -> OperatingPoint:
        """Sum up an exit whose temperature is that of this sweep."""
        index = self.index_of(chosen.eta)
        fields: dict[str, Any] = {**vars(self.point(index)), **vars(chosen)}
        return OperatingPoint(
            top1_interval=share_interval(fields["top1"], self.images),
            top5=float(self._in_top5(index).mean()),
            early_right_fraction=float((self.exits_early(index) & self.early_correct).mean()),
            latency_ms_p50=float(np.percentile(self.latency_ms(index), 50)),
            **fields,
        )

    def _in_top5(self, index: int) -> NDArray[np.bool_]:
        early, refined = self.in_top5
        return np.asarray(np.where(self.exits_early(index), early, refined))

    def curve(self, chosen: int) -> tuple[CalibrationPoint, ...]:
        """At most 101 candidates by ascending eta, with both ends and the chosen one."""
        last = len(self.eta) - 1
        spread = np.linspace(0, last, min(LARGEST_CURVE - 1, last + 1)).round().astype(int)
        return tuple(map(self.point, sorted({*spread.tolist(), chosen})))

    def histogram(self) -> tuple[float, ...]:
        """Share of pictures in each of 20 equal bins of the confidence over [0, 1]."""
        counts, _ = np.histogram(self.confidence, bins=HISTOGRAM_BINS, range=(0, 1))
        return tuple((counts / self.images).tolist())


def sweep_exits(answers: StageAnswers, config: ModelConfig, temperature: float = 1.0) -> ExitSweep:
    """Order the pictures by confidence, as a rising threshold holds them back.

    Args:
        answers: Answers of both stages.
        config: Network; at one stage only the last candidate has a meaning.
        temperature: Temperature of the exit decision, above 0.
    """
    decisions = answers.decisions
    confidences = confidence(decisions.early_logits, temperature)
    comparison = config.two_stage.exit_comparison if config.two_stage else ">"
    order = np.argsort(confidences, kind="stable")
    num_refined, eta = candidate_exits(confidences, comparison)
    return ExitSweep(
        confidence=confidences[order],
        true_class=answers.class_index[order],
        early_class=decisions.early_logits.argmax(1)[order],
        refined_class=decisions.refined_logits.argmax(1)[order],
        in_top5=np.stack(
            [
                _in_top(5, logits, answers.class_index)[order]
                for logits in (decisions.early_logits, decisions.refined_logits)
            ]
        ),
        early_ms=answers.early_ms[order],
        late_ms=(answers.early_ms + answers.refine_ms)[order],
        num_refined=num_refined,
        eta=eta,
        macs_g=_costs_g(answers, config),
        comparison=comparison,
    )


def _in_top(count: int, logits: NDArray[Any], true_class: Classes) -> NDArray[np.bool_]:
    """Whether fewer than `count` classes come before the true one; of equal ones the lowest is."""
    true = np.take_along_axis(logits, true_class[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < true_class[:, None]
    before = (logits > true) | ((logits == true) & earlier)
    return np.asarray(before.sum(axis=1) < count)


def _costs_g(answers: StageAnswers, config: ModelConfig) -> tuple[float, float]:
    """Cost of a picture that exits early, and of one that is refined; the mean at one stage.

    Where the cost of a picture depends on the tokens it keeps, those are counted. A strict network
    computes some pictures again.
    """
    if config.two_stage is not None:
        return mean_macs_g(config, 0.0), mean_macs_g(config, 1.0)
    first, *second = graph_macs(config).values()
    kept_macs = family_named(config.family).kept_macs
    mean = first if kept_macs is None else kept_macs(config, answers.decisions.kept)
    mean += float((answers.refine_ms > 0).mean()) * sum(second)
    return mean / _GIGA, mean / _GIGA


def candidate_exits(
    confidences: Floats, comparison: Literal[">", ">="]
) -> tuple[NDArray[np.int64], Floats]:
    """Find every number of pictures that a threshold can hold back, and such a threshold.

    Args:
        confidences: Confidence of each picture, (n,); equal ones stay together.
        comparison: How the network compares a confidence with a threshold.

    Returns:
        Pictures that do not exit early, (m,) ascending from 0 to n, and thresholds (m,) from 0
        to 1.
    """
    levels, counts = np.unique(confidences, return_counts=True)
    num_refined = np.concatenate([[0], np.cumsum(counts)])
    return num_refined, np.concatenate([[0.0], _between(levels, comparison), [1.0]])


def _between(levels: Floats, comparison: str) -> Floats:
    """Thresholds that separate neighbours, (k,) ascending to (k - 1,)."""
    low, high = levels[:-1], levels[1:]
    middle = low + (high - low) / 2
    # Neighbouring floats have no number between them; then one of the two separates them.
    return np.where((low < middle) & (middle < high), middle, low if comparison == ">" else high)


def _mixed_mean(early: NDArray[Any], late: NDArray[Any], num_refined: NDArray[np.int64]) -> Floats:
    """Mean over all pictures with the `late` value for the first `num_refined` of them."""
    gain = np.concatenate([[0.0], np.cumsum(late.astype(np.float64) - early)])
    return np.asarray((early.sum() + gain[num_refined]) / len(early))
