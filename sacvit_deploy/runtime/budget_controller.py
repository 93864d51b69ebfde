"""Moves the exit threshold so that a picture costs, on average, what it may.

With `e` milliseconds in the first stage and `r` in the second, a share `s` of refined pictures
costs `e + s*r` on average. So the share that a budget allows is `(budget - e) / r`, and the
threshold that gives this share is a quantile of the confidences seen lately. `e` and `r` are
moving averages of what was measured, so that a machine that slows down, or speeds up, is followed.
"""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING

from sacvit_deploy.runtime.budget import Budget, BudgetGoal, BudgetState, BudgetWarning
from sacvit_deploy.runtime.recent_costs import MovingAverage, RecentConfidences, StageCosts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sacvit_deploy.runtime.scheduler import Outcome
    from sacvit_deploy.spec import ModelConfig

# Pictures: seen before eta moves; out of budget before anybody is told.
LEARNING = 20
PATIENCE = 25


class BudgetController:
    """Takes what pictures cost and how sure the first stage was; says which threshold to use.

    Safe to use from several threads at once.
    """

    def __init__(self, goal: BudgetGoal, config: ModelConfig, eta: float) -> None:
        """Start from a threshold.

        Args:
            goal: What to hold.
            config: The network, of two stages.
            eta: The threshold until enough was seen, moved into the bounds of `goal`.

        Raises:
            ConfigError: The network has one stage.
        """
        self.goal = goal
        self._comparison = config.stages.exit_comparison
        self._eta = min(max(eta, goal.min_eta), goal.max_eta)
        self._costs = StageCosts(_token_ratio(config))
        self._preprocess = MovingAverage()
        self._recent = RecentConfidences()
        self._pictures_over = 0
        self._warned = False
        self._state: BudgetState = "learning"
        self._lock = threading.Lock()

    @property
    def eta(self) -> float:
        """The threshold to use now."""
        return self._eta

    def saw_preprocess(self, ms: float) -> None:
        """A picture was read and prepared in so many milliseconds."""
        with self._lock:
            self._preprocess.add(ms)

    def saw_first(self, outcomes: Sequence[Outcome]) -> None:
        """A batch went through the first stage.

        Warns:
            BudgetWarning: The budget cannot be held within the bounds; at most once.
        """
        with self._lock:
            self._costs.add_early(outcomes[0].early_ms, len(outcomes))
            self._recent.add(o.early_exit_confidence or 0.0 for o in outcomes)
            self._recent.forget_another_scene(self._eta)
            if len(self._recent) >= LEARNING and self._costs.refine_ms > 0:
                self._move()
            over = self._state == "over"
            self._pictures_over = self._pictures_over + len(outcomes) if over else 0
            tell = self._pictures_over >= PATIENCE and not self._warned
            self._warned |= tell
        if tell:
            warnings.warn(self._cannot(), BudgetWarning, stacklevel=6)

    def saw_refined(self, outcomes: Sequence[Outcome]) -> None:
        """Pictures went through the second stage together."""
        early_ms = sum(outcome.early_ms for outcome in outcomes) / len(outcomes)
        with self._lock:
            self._costs.add_refine(outcomes[0].refine_ms, early_ms, len(outcomes))

    def report(self) -> Budget:
        """Where the controller stands at this moment."""
        with self._lock:
            share = self._share()
            return Budget(
                state=self._state,
                eta=self._eta,
                min_eta=self.goal.min_eta,
                max_eta=self.goal.max_eta,
                goal_ms=self._goal_ms(),
                expected_ms=self._expected_ms(share),
                refine_fraction=share,
                early_ms=self._costs.early_ms,
                refine_ms=self._costs.refine_ms,
                preprocess_ms=self._preprocess.value,
            )

    def _goal_ms(self) -> float:
        if self.goal.fps is None:
            return self.goal.ms or 0.0
        return max(0.0, 1e3 / self.goal.fps - self._preprocess.value)

    def _expected_ms(self, share: float) -> float:
        return self._costs.early_ms + share * self._costs.refine_ms

    def _share(self) -> float:
        """How many of the last pictures are refined at the present threshold."""
        return self._recent.share_refined(self._eta, self._comparison)

    def _move(self) -> None:
        """Set the threshold anew if the expected cost is too far from the goal, and the state."""
        goal_ms = self._goal_ms()
        slack_ms = self.goal.hysteresis * goal_ms
        if abs(self._expected_ms(self._share()) - goal_ms) > slack_ms:
            share = (goal_ms - self._costs.early_ms) / self._costs.refine_ms
            eta = self._recent.eta_for_share(share)
            self._eta = min(max(eta, self.goal.min_eta), self.goal.max_eta)
        excess_ms = self._expected_ms(self._share()) - goal_ms
        self._state = "holding"
        if self._eta <= self.goal.min_eta and excess_ms > slack_ms:
            self._state = "over"
        elif self._eta >= self.goal.max_eta and excess_ms < -slack_ms:
            self._state = "spare"

    def _cannot(self) -> str:
        now = self.report()
        why = (
            f"At eta {now.eta:g}, the lower bound, {1 - now.refine_fraction:.0%} leave early and a "
            f"picture costs {now.expected_ms:.3g} ms on average; {now.goal_ms:.3g} ms are left for "
            "both stages."
        )
        fix = "Lower the goal, take a smaller network or precision, or a faster runtime"
        fix += ", or allow a lower min_eta or accuracy." if now.min_eta > 0 else "."
        return f"The budget of {self.goal} cannot be held. {why} The stream goes on. {fix}"


def _token_ratio(config: ModelConfig) -> float:
    """What the second stage costs over the first, if cost goes with the number of tokens."""
    return 1 + 3 * config.num_targets / config.num_coarse_tokens
