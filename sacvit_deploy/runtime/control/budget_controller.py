"""Moves the exit threshold so that the mean cost of a picture meets a budget.

With `e` milliseconds in the first stage and `r` in the second, a share `s` of refined pictures
costs `e + s*r` on average. So a budget allows the share `(budget - e) / r`, and the threshold that
gives this share is a quantile of the recent confidences. `e` and `r` are moving averages of
measured times, so that the threshold follows a machine that slows down or speeds up.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Literal

from sacvit_deploy.errors import warn_caller
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.runtime.control.budget import Budget, BudgetGoal, BudgetState, BudgetWarning

if TYPE_CHECKING:
    from sacvit_deploy.runtime.scheduler import Outcome


# Pictures to see before eta moves, and to be over budget before a warning.
LEARNING = 20
PATIENCE = 25
# Pictures to remember, and pictures that are enough to detect a new scene.
WINDOW = 400
SCENE = 50
# Standard errors between the shares of two scenes.
_SCENE_ERRORS = 4.0
# Weight of the newest picture in the moving averages: the quick one follows half of a change within
# 7 pictures, the steady one within 17.
_QUICK, _STEADY = 0.1, 0.04
# Largest relative distance of the two, and the pictures for which the quick one counts after that.
_LEFT_BEHIND = 0.2
_FOLLOW = 25
# Limit of an outlier, in multiples of the average.
_LONGEST = 3.0


class BudgetController:
    """An `ExitPolicy` that holds a budget, from measured costs and confidences.

    Safe to use from several threads at once.
    """

    def __init__(self, goal: BudgetGoal, config: ModelConfig, eta: float) -> None:
        """Start from a threshold.

        Args:
            goal: The budget to hold.
            config: A two-stage network.
            eta: First threshold, moved into the bounds of `goal`.

        Raises:
            ConfigError: The network has one stage.
        """
        self.goal = goal
        self._comparison = config.stages.exit_comparison
        self._eta = min(max(eta, goal.min_eta), goal.max_eta)
        # An estimate from the numbers of tokens, until a picture was refined.
        self._costs = StageCosts(1 + 3 * config.num_targets / config.num_coarse_tokens)
        self._preprocess = MovingAverage()
        self._recent = RecentConfidences()
        self._pictures_over = 0
        self._warned = False
        self._state: BudgetState = "learning"
        self._lock = threading.Lock()

    def threshold(self) -> float:
        """See `ExitPolicy.threshold`."""
        return self._eta

    def saw(self, outcomes: Sequence[Outcome]) -> None:
        """See `ExitPolicy.saw`.

        Warns:
            BudgetWarning: The budget cannot be held within the bounds; at most once.
        """
        if outcomes[0].refined_logits is not None:
            early_ms = sum(outcome.early_ms for outcome in outcomes) / len(outcomes)
            with self._lock:
                self._costs.add_refine(outcomes[0].refine_ms, early_ms, len(outcomes))
            return
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
            warn_caller(self._cannot(), BudgetWarning)

    def saw_preprocess(self, ms: float) -> None:
        """Learn how long it took to read and prepare a picture."""
        with self._lock:
            self._preprocess.add(ms)

    def report(self) -> Budget:
        """Report the state at this moment."""
        with self._lock:
            return Budget(
                state=self._state,
                eta=self._eta,
                min_eta=self.goal.min_eta,
                max_eta=self.goal.max_eta,
                goal_ms=self._goal_ms(),
                expected_ms=self._expected_ms(),
                refine_fraction=self._share(),
                early_ms=self._costs.early_ms,
                refine_ms=self._costs.refine_ms,
                preprocess_ms=self._preprocess.value,
            )

    def _goal_ms(self) -> float:
        if self.goal.fps is None:
            return self.goal.ms or 0.0
        return max(0.0, 1e3 / self.goal.fps - self._preprocess.value)

    def _expected_ms(self) -> float:
        return self._costs.early_ms + self._share() * self._costs.refine_ms

    def _share(self) -> float:
        """Compute the share of recent pictures that are refined at the current threshold."""
        return self._recent.share_refined(self._eta, self._comparison)

    def _move(self) -> None:
        """Move the threshold if the expected cost is too far from the goal, and set the state."""
        goal_ms = self._goal_ms()
        slack_ms = self.goal.hysteresis * goal_ms
        if abs(self._expected_ms() - goal_ms) > slack_ms:
            share = (goal_ms - self._costs.early_ms) / self._costs.refine_ms
            eta = self._recent.eta_for_share(share)
            self._eta = min(max(eta, self.goal.min_eta), self.goal.max_eta)
        excess_ms = self._expected_ms() - goal_ms
        self._state = "holding"
        if self._eta <= self.goal.min_eta and excess_ms > slack_ms:
            self._state = "over"
        elif self._eta >= self.goal.max_eta and excess_ms < -slack_ms:
            self._state = "spare"

    def _cannot(self) -> str:
        now = self.report()
        why = (
            f"At eta {now.eta:g}, the lower bound, {1 - now.refine_fraction:.0%} exit early and a "
            f"picture costs {now.expected_ms:.3g} ms on average; {now.goal_ms:.3g} ms are left for "
            "both stages."
        )
        fix = "Lower the goal, take a smaller network or precision, or a faster runtime"
        fix += ", or allow a lower min_eta or accuracy." if now.min_eta > 0 else "."
        return f"The budget of {self.goal} cannot be held. {why} The stream goes on. {fix}"


class MovingAverage:
    """A steady moving average that jumps to a quick one when the two differ too much."""

    def __init__(self) -> None:
        self.value = 0.0
        self._quick = 0.0
        self._age = 0
        self._following = 0

    def add(self, value: float, pictures: int = 1) -> None:
        """Add a value that was measured for some pictures at once."""
        if self._age:
            value = min(value, _LONGEST * self._quick)
        self._age += pictures
        newest = pictures / self._age
        self._quick += max(1 - (1 - _QUICK) ** pictures, newest) * (value - self._quick)
        self.value += max(1 - (1 - _STEADY) ** pictures, newest) * (value - self.value)
        if abs(self._quick - self.value) > _LEFT_BEHIND * self.value:
            self._following = _FOLLOW
        if self._following > 0:
            self.value, self._age = self._quick, round(1 / _QUICK)
            self._following -= pictures


class StageCosts:
    """Cost of each stage for one picture.

    The cost of the second stage is kept as a multiple of the first: both slow down together, and
    the first is measured with every picture. The multiple divides two means over the same
    pictures, both of which fade alike, so that a slower machine leaves it unchanged.
    """

    def __init__(self, ratio: float) -> None:
        """Start with a guess of the multiple, used until a picture was refined."""
        self._ratio = ratio
        self._early = MovingAverage()
        self._early_sum = self._refine_sum = 0.0
        self._warm_early = self._warm_refine = False

    @property
    def early_ms(self) -> float:
        """First stage, in milliseconds; 0 until it is known."""
        return self._early.value

    @property
    def refine_ms(self) -> float:
        """Second stage, in milliseconds, estimated from the first."""
        return self._early.value * self._ratio

    def add_early(self, ms: float, pictures: int) -> None:
        """Add the time of the first stage for each of some pictures."""
        # The first run of a session allocates, and may compile.
        if self._warm_early:
            self._early.add(ms, pictures)
        self._warm_early = True

    def add_refine(self, ms: float, early_ms: float, pictures: int) -> None:
        """Add the time of the second stage, for pictures that took `early_ms` each in the first."""
        early_ms = min(early_ms, _LONGEST * self._early.value)
        if self._warm_refine and early_ms > 0:
            fade = (1 - _STEADY) ** pictures
            longest_ms = _LONGEST * self._ratio * early_ms
            self._early_sum = fade * self._early_sum + pictures * early_ms
            self._refine_sum = fade * self._refine_sum + pictures * min(ms, longest_ms)
            self._ratio = self._refine_sum / self._early_sum
        self._warm_refine = True


class RecentConfidences:
    """The last confidences; only the newest after a change of scene.

    Kept by time and also by size, since every picture asks for a quantile.
    """

    def __init__(self) -> None:
        self._values: deque[float] = deque()
        self._ordered: list[float] = []

    def __len__(self) -> int:
        return len(self._values)

    def add(self, values: Iterable[float]) -> None:
        """Add the next confidences, in order of time."""
        for value in values:
            self._values.append(value)
            insort(self._ordered, value)
        self._keep(WINDOW)

    def share_refined(self, eta: float, comparison: Literal[">", ">="]) -> float:
        """Compute the share that does not leave at a threshold, in [0, 1]; 0 if there are none."""
        if eta >= 1:
            return 1.0
        count = bisect_right if comparison == ">" else bisect_left
        return count(self._ordered, eta) / max(1, len(self._ordered))

    def eta_for_share(self, share: float) -> float:
        """Find the threshold that refines a share of them, or the next smaller share.

        Args:
            share: Share to refine; 0 or less is none, 1 or more all.

        Returns:
            In [0, 1], between two confidences, so that it means the same under `>` and `>=`.
        """
        if share <= 0:
            return 0.0
        if share >= 1 or not self._ordered:
            return 1.0
        above = self._ordered[int(share * len(self._ordered))]
        # Equal confidences stay together, on the side that costs less.
        count = bisect_left(self._ordered, above)
        below = self._ordered[count - 1] if count else 0.0
        return (below + above) / 2

    def forget_another_scene(self, eta: float) -> None:
        """Drop the older confidences if their share below `eta` differs from that of the newest.

        By a two-sample z-test, as in ADWIN (Bifet and Gavalda 2007), with one cut.
        """
        older = len(self._values) - SCENE
        if older < SCENE:
            return
        refined = bisect_right(self._ordered, eta)
        newest = sum(value <= eta for value in islice(reversed(self._values), SCENE))
        share = refined / (older + SCENE)
        variance = share * (1 - share) * (1 / SCENE + 1 / older)
        if ((refined - newest) / older - newest / SCENE) ** 2 > _SCENE_ERRORS**2 * variance:
            self._keep(SCENE)

    def _keep(self, count: int) -> None:
        while len(self._values) > count:
            del self._ordered[bisect_left(self._ordered, self._values.popleft())]
