"""What an exit threshold is to achieve, and the one that achieves it best."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from sacvit_deploy.errors import ConfigError, GoalError

if TYPE_CHECKING:
    from sacvit_deploy.evaluation.exit_sweep import ExitSweep

GoalKind = Literal["max_accuracy_drop", "target_macs", "target_latency_ms", "target_exit_fraction"]

GOAL_KINDS: tuple[GoalKind, ...] = get_args(GoalKind)

# Means are compared with limits that people write in decimal.
_ROUNDING = 1e-9
_NAMES: dict[GoalKind, str] = {
    "max_accuracy_drop": "a drop",
    "target_macs": "a mean cost in G",
    "target_latency_ms": "a latency in ms",
    "target_exit_fraction": "a share leaving early",
}
_AT_MOST_1 = ("max_accuracy_drop", "target_exit_fraction")


@dataclass(frozen=True)
class ExitGoal:
    """One limit. Of the thresholds that keep it, the best of the other quantity is taken.

    Attributes:
        kind: `max_accuracy_drop`: top-1 is at most `value` below the reference; then the fewest
            multiply-accumulates. `target_macs`: at most `value` 10^9 multiply-accumulates a picture
            on average; `target_latency_ms`: at most `value` ms; `target_exit_fraction`: at least
            that share leaves early; then, in all three, the best top-1.
        value: The limit.
        reference_top1: What an accuracy drop is counted from; None takes the second stage alone.
        percentile: Which percentile of the latency is meant; None takes the mean.

    Raises:
        ConfigError: A number is out of range, or does not belong to this kind of goal.
    """

    kind: GoalKind = "max_accuracy_drop"
    value: float = 0.005
    reference_top1: float | None = None
    percentile: float | None = None

    def __post_init__(self) -> None:
        largest = 1 if self.kind in _AT_MOST_1 else np.inf
        zero_is_a_limit = self.kind in _AT_MOST_1
        above = self.value >= 0 if zero_is_a_limit else self.value > 0
        if not (above and self.value <= largest and np.isfinite(self.value)):
            wanted = "a number from 0 to 1" if zero_is_a_limit else "a finite number above 0"
            raise ConfigError(f"The goal {self} is out of range.", f"Make it {wanted}.")
        if self.reference_top1 is not None:
            self._check_reference(self.reference_top1)
        if self.percentile is not None:
            self._check_percentile(self.percentile)

    def _check_reference(self, top1: float) -> None:
        if self.kind != "max_accuracy_drop" or not 0 <= top1 <= 1:
            raise ConfigError(
                f"The reference top-1 of the goal {self} has no meaning.",
                "Give a share from 0 to 1, and only with a limit to the drop of accuracy.",
            )

    def _check_percentile(self, percentile: float) -> None:
        if self.kind != "target_latency_ms" or not 0 < percentile < 100:
            raise ConfigError(
                f"The percentile of the goal {self} has no meaning.",
                "Give a number between 0 and 100, and only with a target latency.",
            )

    def __str__(self) -> str:
        parts = [f"{self.kind}={self.value:g}"]
        for name in ("reference_top1", "percentile"):
            value = getattr(self, name)
            parts += [] if value is None else [f"{name}={value:g}"]
        return ", ".join(parts)

    def reference(self, sweep: ExitSweep) -> float:
        """The top-1 that a drop of accuracy is counted from."""
        return sweep.late_top1 if self.reference_top1 is None else self.reference_top1

    def quantity(self, sweep: ExitSweep, index: int) -> float:
        """What the goal limits, at one candidate: the drop, the cost, the latency, the share."""
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


def choose_exit(sweep: ExitSweep, goal: ExitGoal) -> int:
    """The candidate that meets a goal and is best in the other quantity; of equals the cheapest.

    Raises:
        GoalError: None meets it.
    """
    if goal.kind == "max_accuracy_drop":
        met = goal.reference(sweep) - sweep.top1 <= goal.value + _ROUNDING
        if not met.any():
            raise _unmet(sweep, goal, int(sweep.top1.argmax()))
        return int(met.argmax())
    count = _count_met(sweep, goal)
    if count == 0:
        raise _unmet(sweep, goal, 0)
    return int(sweep.top1[:count].argmax())


def _count_met(sweep: ExitSweep, goal: ExitGoal) -> int:
    """How many candidates meet a limit to a cost; they are the first ones.

    A higher threshold never makes a mixture cheaper, so that few of them need to be looked at.
    """

    def fails(index: int) -> bool:
        return not goal.is_met(goal.quantity(sweep, index))

    return bisect_right(range(len(sweep.eta)), False, key=fails)


def _unmet(sweep: ExitSweep, goal: ExitGoal, nearest: int) -> GoalError:
    found = goal.quantity(sweep, nearest)
    point = sweep.point(nearest)
    return GoalError(
        f"No exit threshold meets {goal}. The nearest is eta {point.eta:.4g} with "
        f"{_NAMES[goal.kind]} of {found:.4g}: top-1 {point.top1:.2%}, "
        f"{point.early_exit_fraction:.1%} leave early, {point.macs_mean_g:.4g} G "
        "multiply-accumulates a picture. Nothing was written.",
        f"Ask for {_rounded_up(found)} or more, or use another network, precision or runtime.",
    )


def _rounded_up(value: float) -> str:
    """Four digits that are not below the value, so that asking for them works."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / unit) * unit:.6g}"
