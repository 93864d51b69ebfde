"""The cost a stream is allowed, and the state of its control."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from sacvit_deploy.decode import check_field, shown
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.records import ExitCalibration
from sacvit_deploy.spec import as_number, check_eta

BudgetState = Literal["learning", "holding", "spare", "over"]


class BudgetWarning(UserWarning):
    """A budget cannot be held within its bounds."""


@dataclass(frozen=True)
class BudgetGoal:
    """The cost allowed for a picture, and the bounds of the threshold.

    Its attributes are the arguments of `Pipeline.with_budget`.

    Raises:
        ConfigError: Not exactly one of `ms` and `fps` is given, or a value is out of range.
    """

    ms: float | None = None
    fps: float | None = None
    min_eta: float = 0.0
    max_eta: float = 1.0
    min_top1: float | None = None
    max_accuracy_drop: float | None = None
    hysteresis: float = 0.03

    def __post_init__(self) -> None:
        if (self.ms is None) == (self.fps is None):
            raise ConfigError(
                f"The budget is ms={shown(self.ms)} and fps={shown(self.fps)}.",
                "Give one of them: mean milliseconds a picture, or pictures a second.",
            )
        wanted = self.ms if self.fps is None else self.fps
        if not 0 < as_number(wanted) < math.inf:
            raise ConfigError(f"The budget is {shown(wanted)}.", "Make it a finite number above 0.")
        if not check_eta(self.min_eta) <= check_eta(self.max_eta):
            raise ConfigError(
                f"The least eta is {self.min_eta:g} and the largest {self.max_eta:g}.",
                "Let min_eta be no larger than max_eta.",
            )
        hysteresis = self.hysteresis
        check_field(0 <= as_number(hysteresis) < 1, "hysteresis", hysteresis, "0 to below 1")
        if self.min_top1 is not None and self.max_accuracy_drop is not None:
            raise ConfigError(
                f"The accuracy to keep is min_top1={shown(self.min_top1)} and "
                f"max_accuracy_drop={shown(self.max_accuracy_drop)}.",
                "Give at most one of them.",
            )
        for name in ("min_top1", "max_accuracy_drop"):
            share = getattr(self, name)
            fits = share is None or 0 <= as_number(share) <= 1
            check_field(fits, name, share, "a share from 0 to 1")
        for name, number in tuple(vars(self).items()):  # of any kind, such as a fraction
            object.__setattr__(self, name, None if number is None else float(number))

    def bounded(self, record: ExitCalibration | None) -> BudgetGoal:
        """Return the goal with bounds that keep the accuracy.

        The bounds are measured thresholds: the part of the curve around its best point where every
        point is good enough.

        Args:
            record: Calibration for the precision and backend in use; None if there is none.

        Raises:
            ConfigError: There is no calibration, it never reaches that accuracy, or not within
                `min_eta` and `max_eta`.
        """
        if self.min_top1 is None and self.max_accuracy_drop is None:
            return self
        if record is None or not record.curve:
            raise ConfigError(
                "An accuracy is to be kept, and the exit was not calibrated for this precision and "
                "backend, so that the eta that keeps it is unknown.",
                "Calibrate it: sacvit-deploy calibrate BUNDLE DATA, or give min_eta.",
            )
        wanted = self.min_top1
        if wanted is None:
            # 1e-9: the difference of two counted shares is rounded.
            wanted = record.curve[-1].top1 - (self.max_accuracy_drop or 0.0) - 1e-9
        first, last = _measured_bounds(record, wanted)
        if first > self.max_eta or last < self.min_eta:
            raise ConfigError(
                f"A top-1 accuracy of {wanted:.1%} needs an eta from {first:g} to {last:g}; the "
                f"bounds are {self.min_eta:g} and {self.max_eta:g}.",
                "Widen the bounds, or ask for less accuracy.",
            )
        return replace(self, min_eta=max(self.min_eta, first), max_eta=min(self.max_eta, last))

    def __str__(self) -> str:
        return (
            f"{self.ms:g} ms a picture" if self.fps is None else f"{self.fps:g} pictures a second"
        )


@dataclass(frozen=True)
class Budget:
    """The state of a budget.

    Attributes:
        state: `learning` until 20 pictures were seen; `holding` the goal; `spare`: faster than the
            goal with eta at its upper bound; `over`: slower with eta at its lower bound.
        eta: Current threshold.
        min_eta: Its lower bound.
        max_eta: Its upper bound.
        goal_ms: Milliseconds allowed for a picture in both stages; for a frame rate, its period
            less the time to read and prepare a picture.
        expected_ms: Mean cost of a picture at `eta`.
        refine_fraction: Share of the last 200 pictures that are refined at `eta`.
        early_ms: First stage, moving average.
        refine_ms: Second stage, moving average; estimated from the number of tokens until a
            picture was refined.
        preprocess_ms: Reading and preparing a picture, moving average; 0 before the first.
    """

    state: BudgetState
    eta: float
    min_eta: float
    max_eta: float
    goal_ms: float
    expected_ms: float
    refine_fraction: float
    early_ms: float
    refine_ms: float
    preprocess_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def _measured_bounds(record: ExitCalibration, wanted: float) -> tuple[float, float]:
    """Find the lowest and highest eta around the best that are all as accurate as `wanted`."""
    top1 = [point.top1 for point in record.curve]
    low = high = top1.index(max(top1))
    if top1[low] < wanted:
        raise ConfigError(
            f"A top-1 accuracy of {wanted:.1%} is to be kept; the most in the calibration is "
            f"{top1[low]:.1%}.",
            "Ask for less.",
        )
    while low > 0 and top1[low - 1] >= wanted:
        low -= 1
    while high < len(top1) - 1 and top1[high + 1] >= wanted:
        high += 1
    return record.curve[low].eta, record.curve[high].eta
