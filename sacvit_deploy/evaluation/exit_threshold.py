"""The exit threshold for a goal, from what both stages say about labelled pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sacvit_deploy.errors import DataError
from sacvit_deploy.evaluation.bootstrap import (
    RESAMPLES,
    bootstrap_intervals,
    mean_of,
    percentile_of,
)
from sacvit_deploy.evaluation.exit_goal import ExitGoal, choose_exit
from sacvit_deploy.evaluation.exit_sweep import sweep_exits
from sacvit_deploy.evaluation.temperature import (
    LARGEST,
    SMALLEST,
    fit_temperature,
    negative_log_likelihood,
)
from sacvit_deploy.exit_calibration import ExitCalibration

if TYPE_CHECKING:
    from sacvit_deploy.bundle import Precision
    from sacvit_deploy.evaluation.answers import Skipped, StageAnswers
    from sacvit_deploy.evaluation.bootstrap import Interval, Statistic
    from sacvit_deploy.evaluation.exit_sweep import ExitSweep
    from sacvit_deploy.exit_calibration import CalibrationPoint
    from sacvit_deploy.manifest_values import Runtime
    from sacvit_deploy.spec import ModelConfig

FEWEST_IMAGES = 50
FEW_IMAGES = 1000


@dataclass(frozen=True)
class ThresholdSearch:
    """What the threshold is to achieve, and how it is sought.

    Attributes:
        goal: The limit.
        temperature_scaling: Fit a temperature of the exit's confidence first.
        seed: Of the resamples that the intervals come from.
        resamples: How many.
    """

    goal: ExitGoal = field(default_factory=ExitGoal)
    temperature_scaling: bool = False
    seed: int = 0
    resamples: int = RESAMPLES


@dataclass(frozen=True)
class Likelihood:
    """How well the first stage's probabilities fit, in nats a picture; less is better.

    Attributes:
        before: Negative log likelihood at temperature 1.
        after: At the temperature that was found.
    """

    before: float
    after: float


@dataclass(frozen=True)
class Calibration:
    """The threshold that was found, and what it rests on.

    Attributes:
        goal: What was asked for.
        chosen: The threshold and what it gives.
        temperature: Of the exit's confidence; 1 unless one was fitted.
        reached: The quantity that the goal limits, at the threshold.
        reference_top1: What a drop of accuracy is counted from.
        macs_g: Cost of a picture that leaves early, and of one that does not, in 10^9
            multiply-accumulates.
        intervals: 95 % intervals of `top1`, `early_exit_fraction`, `macs_mean_g`,
            `latency_ms_mean` and `goal`, which is what `reached` is; of the threshold as chosen.
        curve: At most 101 thresholds, by ascending eta, the chosen one among them.
        confidence_histogram: Share of pictures in 20 equal bins of the confidence.
        images: Pictures measured.
        skipped: Pictures that could not be read.
        data_sha256: Of the pictures measured.
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
        """What to know before relying on it, each a sentence."""
        found = []
        if self.images < FEW_IMAGES:
            low, high = self.intervals["top1"]
            found.append(
                f"{self.images} pictures are few: on others, top-1 may be anything from "
                f"{low:.1%} to {high:.1%}."
            )
        if self.likelihood and not 1.01 * SMALLEST < self.temperature < 0.99 * LARGEST:
            found.append("The temperature is at the end of its range; look at the data.")
        if self.skipped:
            first = self.skipped[0]
            found.append(
                f"{len(self.skipped)} pictures were skipped; the first, {first.name}: "
                f"{first.reason}"
            )
        return found

    def record(self, precision: Precision, runtime: Runtime) -> ExitCalibration:
        """As the bundle keeps it."""
        return ExitCalibration(
            precision=precision,
            runtime=runtime,
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
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, by the contract of `calibrate`."""
        return {
            **asdict(self.chosen),
            "temperature": self.temperature,
            "goal": {**asdict(self.goal), "reached": self.reached},
            "reference_top1": self.reference_top1,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "likelihood": asdict(self.likelihood) if self.likelihood else None,
            "images": self.images,
            "skipped": [asdict(entry) for entry in self.skipped],
            "data_sha256": self.data_sha256,
            "warnings": self.warnings,
            "curve": [asdict(point) for point in self.curve],
        }


def find_threshold(
    answers: StageAnswers, config: ModelConfig, search: ThresholdSearch
) -> Calibration:
    """Choose the threshold for a goal.

    Args:
        answers: Of a network of two stages.
        config: Of that network.
        search: The goal, and how to get there.

    Raises:
        GoalError: No threshold meets the goal.
        DataError: There are fewer than 50 pictures.
    """
    check_enough(len(answers.names))
    logits, truth = answers.decisions.early_logits, answers.class_index
    temperature, likelihood = 1.0, None
    if search.temperature_scaling:
        temperature = fit_temperature(logits, truth)
        ends = (negative_log_likelihood(logits, truth, t) for t in (1.0, temperature))
        likelihood = Likelihood(*ends)
    sweep = sweep_exits(answers, config, temperature)
    found = _measured(answers, sweep, choose_exit(sweep, search.goal), search)
    return replace(found, temperature=temperature, likelihood=likelihood)


def measure_threshold(
    answers: StageAnswers, config: ModelConfig, found: Calibration, search: ThresholdSearch
) -> Calibration:
    """What a threshold that was found elsewhere gives on other data, or in another precision.

    Args:
        answers: Of a network of two stages.
        config: Of that network.
        found: Its threshold and temperature count.
        search: The goal whose quantity is wanted, and resamples.
    """
    sweep = sweep_exits(answers, config, found.temperature)
    index = sweep.index_of(found.chosen.eta)
    measured = _measured(answers, sweep, index, search)
    # What the candidate is called on this data is another number between the same two pictures.
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
        intervals=bootstrap_intervals(
            _statistics(sweep, index, search.goal),
            sweep.images,
            seed=search.seed,
            resamples=search.resamples,
        ),
        curve=sweep.curve(index),
        confidence_histogram=sweep.histogram(),
        images=sweep.images,
        skipped=answers.skipped,
        data_sha256=answers.data_sha256,
    )


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


def _statistics(sweep: ExitSweep, index: int, goal: ExitGoal) -> dict[str, Statistic]:
    """What an interval is wanted of, at one threshold."""
    right = sweep.right(index).astype(float)
    leaves = sweep.leaves(index)
    early, late = sweep.macs_g
    latency = sweep.latency_ms(index)
    # Picture by picture: most of what resampling moves is common to the drop's two terms.
    reference = sweep.late_right if goal.reference_top1 is None else goal.reference_top1
    of_goal = {
        "max_accuracy_drop": reference - right,
        "target_macs": leaves * early + ~leaves * late,
        "target_exit_fraction": leaves,
        "target_latency_ms": latency,
    }
    percentile = goal.percentile
    limited = of_goal[goal.kind]
    return {
        "top1": mean_of(right),
        "early_exit_fraction": mean_of(leaves),
        "macs_mean_g": mean_of(of_goal["target_macs"]),
        "latency_ms_mean": mean_of(latency),
        "goal": mean_of(limited) if percentile is None else percentile_of(limited, percentile),
    }
