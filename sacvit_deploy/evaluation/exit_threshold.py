"""The goal of an exit threshold, and the threshold that meets it best."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from sacvit_deploy.decode import encode
from sacvit_deploy.errors import ConfigError, DataError, GoalError
from sacvit_deploy.evaluation.exit_sweep import ExitSweep, sweep_exits
from sacvit_deploy.evaluation.statistics import (
    LARGEST,
    RESAMPLES,
    SMALLEST,
    Interval,
    Statistic,
    bootstrap_intervals,
    fit_temperature,
    mean_of,
    negative_log_likelihood,
    percentile_of,
    share_interval,
)
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.records import CalibrationPoint, ExitCalibration
from sacvit_deploy.spec import Backend, Precision

if TYPE_CHECKING:
    from sacvit_deploy.evaluation.answers import Skipped, StageAnswers


GoalKind = Literal["max_accuracy_drop", "target_macs", "target_latency_ms", "target_exit_fraction"]

GOAL_KINDS: tuple[GoalKind, ...] = get_args(GoalKind)
FEWEST_IMAGES = 50
FEW_IMAGES = 1000

# People write limits in decimal; a mean may miss one by its rounding alone.
_ROUNDING = 1e-9
_SHARES = ("max_accuracy_drop", "target_exit_fraction")
_NAMES: dict[GoalKind, str] = {
    "max_accuracy_drop": "a drop",
    "target_macs": "a mean cost in G",
    "target_latency_ms": "a latency in ms",
    "target_exit_fraction": "a share exiting early",
}


@dataclass(frozen=True)
class ExitGoal:
    """One limit, and implicitly the other quantity to make best within it.

    Attributes:
        kind: `max_accuracy_drop`: top-1 is at most `value` below the reference; then the fewest
            multiply-accumulates. `target_macs`: at most `value` 10^9 multiply-accumulates a picture
            on average; `target_latency_ms`: at most `value` ms; `target_exit_fraction`: at least
            that share exits early; then, in all three, the best top-1.
        value: The limit.
        reference_top1: Accuracy a drop is counted from; None takes the second stage alone.
        percentile: Percentile of the latency to limit; None limits the mean.

    Raises:
        ConfigError: A number is out of range, or does not belong to this kind of goal.
    """

    kind: GoalKind = "max_accuracy_drop"
    value: float = 0.005
    reference_top1: float | None = None
    percentile: float | None = None

    def __post_init__(self) -> None:
        if self.kind in _SHARES:
            self._check("goal", 0 <= self.value <= 1, "Make it a number from 0 to 1.")
        else:
            self._check("goal", 0 < self.value < math.inf, "Make it a finite number above 0.")
        if self.reference_top1 is not None:
            self._check(
                "reference top-1 of the goal",
                self.kind == "max_accuracy_drop" and 0 <= self.reference_top1 <= 1,
                "Give a share from 0 to 1, and only with a limit to the drop of accuracy.",
            )
        if self.percentile is not None:
            self._check(
                "percentile of the goal",
                self.kind == "target_latency_ms" and 0 < self.percentile < 100,
                "Give a number between 0 and 100, and only with a target latency.",
            )

    def _check(self, what: str, is_good: bool, fix: str) -> None:
        if not is_good:
            raise ConfigError(f"The {what} is out of range: {self}.", fix)

    def __str__(self) -> str:
        parts = [f"{self.kind}={self.value:g}"]
        for name in ("reference_top1", "percentile"):
            value = getattr(self, name)
            parts += [] if value is None else [f"{name}={value:g}"]
        return ", ".join(parts)

    def reference(self, sweep: ExitSweep) -> float:
        """Accuracy that a drop is counted from."""
        return sweep.refine_top1 if self.reference_top1 is None else self.reference_top1

    def quantity(self, sweep: ExitSweep, index: int) -> float:
        """Quantity that the goal limits, at one candidate: drop, cost, latency or share."""
        if self.kind == "max_accuracy_drop":
            return self.reference(sweep) - float(sweep.top1[index])
        if self.kind == "target_macs":
            return float(sweep.macs_mean_g[index])
        if self.kind == "target_exit_fraction":
            return float(sweep.early_exit_fraction[index])
        if self.percentile is None:
            return float(sweep.latency_ms_mean[index])
        return float(np.percentile(sweep.latency_ms(index), self.percentile))

    def is_met(self, quantity: float) -> bool:
        """Whether the limited quantity is within the limit."""
        if self.kind == "target_exit_fraction":
            return quantity >= self.value - _ROUNDING
        return quantity <= self.value + _ROUNDING


@dataclass(frozen=True)
class ThresholdSearch:
    """A goal, and how to search for its threshold.

    Attributes:
        goal: The limit.
        temperature_scaling: Fit a temperature of the exit's confidence first.
        seed: Seed of the resamples behind the intervals.
        resamples: Number of resamples.
    """

    goal: ExitGoal = field(default_factory=ExitGoal)
    temperature_scaling: bool = False
    seed: int = 0
    resamples: int = RESAMPLES


@dataclass(frozen=True)
class Likelihood:
    """Negative log likelihood of the first stage, in nats a picture; less is better.

    Attributes:
        before: At temperature 1.
        after: At the fitted temperature.
    """

    before: float
    after: float


@dataclass(frozen=True)
class Calibration:
    """A threshold, its effect on the pictures, and how certain that is.

    Attributes:
        goal: The limit that was asked for.
        chosen: The threshold and its effect.
        temperature: Temperature of the exit's confidence; 1 unless one was fitted.
        reached: Quantity that the goal limits, at the threshold.
        reference_top1: Accuracy that a drop is counted from.
        macs_g: Cost of a picture that exits early, and of one that is refined, in 10^9
            multiply-accumulates.
        intervals: 95 % intervals of `top1`, `early_exit_fraction`, `macs_mean_g`,
            `latency_ms_mean`, and of `reached` under the name `goal`; for the threshold as chosen.
            `share_interval` gives those that follow from a share of the pictures,
            `bootstrap_intervals` the others.
        curve: At most 101 thresholds by ascending eta, the chosen one among them.
        confidence_histogram: Share of pictures in 20 equal bins of the confidence.
        images: Number of pictures measured.
        skipped: Pictures that could not be read.
        data_sha256: Hash of the pictures measured; see `StageAnswers`.
        likelihood: None unless a temperature was fitted.
    """

    goal: ExitGoal
    chosen: CalibrationPoint
    temperature: float
    reached: float
    reference_top1: float
    macs_g: tuple[float, float]
    intervals: dict[str, Interval]
    curve: tuple[CalibrationPoint, ...]
    confidence_histogram: tuple[float, ...]
    images: int
    skipped: tuple[Skipped, ...]
    data_sha256: str
    likelihood: Likelihood | None = None

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt the result, each a sentence."""
        found = []
        if self.images < FEW_IMAGES:
            low, high = self.intervals["top1"]
            found.append(
                f"{self.images} pictures are few: on others, top-1 may be anything from "
                f"{low:.1%} to {high:.1%}."
            )
        if self.likelihood and not 1.01 * SMALLEST < self.temperature < 0.99 * LARGEST:
            found.append("The temperature is at the end of its range; check the data.")
        if self.skipped:
            first = self.skipped[0]
            found.append(
                f"{len(self.skipped)} pictures were skipped; the first, {first.name}: "
                f"{first.reason}"
            )
        return found

    def record(
        self, precision: Precision, backend: Backend, batch_size: int = 1
    ) -> ExitCalibration:
        """Convert to the form that a bundle stores.

        Args:
            precision: Precision of the graphs.
            backend: Backend that computed.
            batch_size: Pictures that were computed together.
        """
        return ExitCalibration(
            precision=precision,
            runtime=backend,
            eta=self.chosen.eta,
            temperature=self.temperature,
            goal=str(self.goal),
            images=self.images,
            data_sha256=self.data_sha256,
            top1=self.chosen.top1,
            top1_interval=self.intervals["top1"],
            macs_mean_g=self.chosen.macs_mean_g,
            early_exit_fraction=self.chosen.early_exit_fraction,
            confidence_histogram=self.confidence_histogram,
            curve=self.curve,
            batch_size=batch_size,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `calibrate`."""
        document = {
            **vars(self.chosen),
            "temperature": self.temperature,
            "goal": {**vars(self.goal), "reached": self.reached},
            "reference_top1": self.reference_top1,
            "intervals": self.intervals,
            "likelihood": self.likelihood,
            "images": self.images,
            "skipped": self.skipped,
            "data_sha256": self.data_sha256,
            "warnings": self.warnings,
            "curve": self.curve,
        }
        return dict(encode(document))


def find_threshold(
    answers: StageAnswers, config: ModelConfig, search: ThresholdSearch
) -> Calibration:
    """Choose the threshold for a goal.

    Args:
        answers: Answers of a network of two stages.
        config: The network.
        search: The goal, and how to search.

    Raises:
        GoalError: No threshold meets the goal.
        DataError: There are fewer than 50 pictures.
    """
    check_enough(len(answers.samples))
    logits, true = answers.decisions.early_logits, answers.class_index
    temperature, likelihood = 1.0, None
    if search.temperature_scaling:
        temperature = fit_temperature(logits, true)
        ends = (negative_log_likelihood(logits, true, t) for t in (1.0, temperature))
        likelihood = Likelihood(*ends)
    sweep = sweep_exits(answers, config, temperature)
    found = _measured(answers, sweep, choose_exit(sweep, search.goal), search)
    return replace(found, temperature=temperature, likelihood=likelihood)


def measure_threshold(
    answers: StageAnswers, config: ModelConfig, found: Calibration, search: ThresholdSearch
) -> Calibration:
    """Measure a threshold on other data than it was found on, or in another precision.

    Args:
        answers: Answers of a network of two stages.
        config: The network.
        found: Gives the threshold and the temperature.
        search: Gives the goal and the resamples.
    """
    sweep = sweep_exits(answers, config, found.temperature)
    measured = _measured(answers, sweep, sweep.index_of(found.chosen.eta), search)
    # The candidate has an eta of its own here, another number between the same two pictures.
    chosen = replace(measured.chosen, eta=found.chosen.eta)
    return replace(measured, chosen=chosen, temperature=found.temperature)


def _measured(
    answers: StageAnswers, sweep: ExitSweep, index: int, search: ThresholdSearch
) -> Calibration:
    return Calibration(
        goal=search.goal,
        chosen=sweep.point(index),
        temperature=1.0,
        reached=search.goal.quantity(sweep, index),
        reference_top1=search.goal.reference(sweep),
        macs_g=sweep.macs_g,
        intervals=_intervals(sweep, index, search),
        curve=sweep.curve(index),
        confidence_histogram=sweep.histogram(),
        images=sweep.images,
        skipped=answers.skipped,
        data_sha256=answers.data_sha256,
    )


def _intervals(sweep: ExitSweep, index: int, search: ThresholdSearch) -> dict[str, Interval]:
    """Intervals at one candidate, by the names of `Calibration.intervals`."""
    top1 = share_interval(float(sweep.top1[index]), sweep.images)
    leaves = share_interval(float(sweep.early_exit_fraction[index]), sweep.images)
    early, late = sweep.macs_g
    macs = late - leaves[1] * (late - early), late - leaves[0] * (late - early)
    found = {"top1": top1, "early_exit_fraction": leaves, "macs_mean_g": macs}
    statistics = _statistics(sweep, index, search.goal)
    found |= bootstrap_intervals(
        statistics, sweep.images, seed=search.seed, resamples=search.resamples
    )
    if search.goal.kind == "target_macs":
        found["goal"] = macs
    elif search.goal.kind == "target_exit_fraction":
        found["goal"] = leaves
    elif search.goal.reference_top1 is not None:
        found["goal"] = (search.goal.reference_top1 - top1[1], search.goal.reference_top1 - top1[0])
    return found


def _statistics(sweep: ExitSweep, index: int, goal: ExitGoal) -> dict[str, Statistic]:
    """Statistics of one candidate that do not follow from a share of the pictures."""
    latency = sweep.latency_ms(index)
    found = {"latency_ms_mean": mean_of(latency)}
    if goal.kind == "target_latency_ms":
        found["goal"] = found["latency_ms_mean"]
        if goal.percentile is not None:
            found["goal"] = percentile_of(latency, goal.percentile)
    elif goal.kind == "max_accuracy_drop" and goal.reference_top1 is None:
        # Picture by picture: most of what resampling moves is common to the drop's two terms.
        found["goal"] = mean_of(sweep.refined_correct - sweep.correct(index).astype(float))
    return found


def check_enough(images: int) -> None:
    """Refuse a data set that says nothing about a threshold.

    Raises:
        DataError: It has fewer than 50 pictures.
    """
    if images < FEWEST_IMAGES:
        raise DataError(
            f"There are {images} pictures; a threshold from fewer than {FEWEST_IMAGES} would be "
            "chance.",
            f"Give {FEW_IMAGES} or more that the network was not trained on.",
        )


def choose_exit(sweep: ExitSweep, goal: ExitGoal) -> int:
    """Return the candidate that meets a goal best; of equals, the cheapest.

    Raises:
        GoalError: No candidate meets the goal.
    """
    if goal.kind == "max_accuracy_drop":
        met = goal.reference(sweep) - sweep.top1 <= goal.value + _ROUNDING
        if not met.any():
            raise _unmet(sweep, goal, int(sweep.top1.argmax()))
        return int(met.argmax())
    # A higher threshold never makes the mixture cheaper, so the candidates that meet the limit are
    # the first ones, and few need to be looked at.
    candidates = range(len(sweep.eta))
    count = bisect_right(candidates, False, key=lambda i: not goal.is_met(goal.quantity(sweep, i)))
    if count == 0:
        raise _unmet(sweep, goal, 0)
    return int(sweep.top1[:count].argmax())


def _unmet(sweep: ExitSweep, goal: ExitGoal, nearest: int) -> GoalError:
    found = goal.quantity(sweep, nearest)
    point = sweep.point(nearest)
    return GoalError(
        f"No exit threshold meets {goal}. The nearest is eta {point.eta:.4g} with "
        f"{_NAMES[goal.kind]} of {found:.4g}: top-1 {point.top1:.2%}, "
        f"{point.early_exit_fraction:.1%} exit early, {point.macs_mean_g:.4g} G "
        "multiply-accumulates a picture. Nothing was written.",
        f"Ask for {_rounded_up(found)} or more, or use another network, precision or backend.",
    )


def _rounded_up(value: float) -> str:
    """Four digits that are not below the value, so that asking for them works."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / unit) * unit:.6g}"
