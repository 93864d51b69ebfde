"""A pipeline whose exit threshold is moved by a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.runtime.budget_controller import BudgetController
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.runtime.reader import PictureReader
from sacvit_deploy.runtime.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from sacvit_deploy.runtime.budget import Budget, BudgetGoal
    from sacvit_deploy.runtime.scheduler import Array, Outcome


class BudgetedPipeline(Pipeline):
    """Shares the sessions of a pipeline; every call and stream moves its threshold.

    `Pipeline.with_budget` makes one. It has statistics of its own, and no `eta` can be given to it.
    One budget holds for everything that is classified with it, from whichever thread.
    """

    def __init__(self, pipeline: Pipeline, goal: BudgetGoal) -> None:
        """Start from the threshold of a pipeline.

        Args:
            pipeline: Of two stages; it stays as it is.
            goal: What to hold; its bounds hold an accuracy too if it names one.

        Raises:
            ConfigError: The network has one stage, or the accuracy cannot be held.
        """
        clock = pipeline.scheduler.clock
        super().__init__(pipeline.manifest, pipeline.opened, eta=pipeline.eta, clock=clock)
        bounded = goal.bounded(self.calibration)
        self._controller = BudgetController(bounded, self.manifest.config, pipeline.eta)
        self._reader = PictureReader(self.preprocess, clock, self._prepared)
        self._stages = _BudgetedScheduler(self, self._controller)

    @property
    def budget(self) -> Budget:
        """Where the budget stands at this moment."""
        return self._controller.report()

    @property
    def eta(self) -> float:
        """The threshold that the next batch meets, in [0, 1]; the budget moves it."""
        return self._controller.eta

    @eta.setter
    def eta(self, value: float) -> None:
        raise _moved_by_budget(value)

    def _threshold(self, asked: float | None) -> float:
        if asked is not None:
            raise _moved_by_budget(asked)
        return self._controller.eta

    def _prepared(self, ms: float) -> None:
        self._observation.prepared(ms)
        self._controller.saw_preprocess(ms)


class _BudgetedScheduler(Scheduler):
    """Asks the controller for the threshold of each batch, and tells it how each stage went."""

    def __init__(self, pipeline: Pipeline, controller: BudgetController) -> None:
        super().__init__(
            pipeline.manifest.config,
            pipeline.opened.sessions,
            pipeline.manifest.selection,
            pipeline.temperature,
            pipeline.scheduler.clock,
        )
        self._controller = controller

    def _decide(
        self,
        logits: Array,
        eta: float,
        start: float,
    ) -> tuple[list[Outcome], NDArray[np.int64]]:
        # Not the eta given: a stream asks for it once, and it moves with every batch.
        outcomes, survivors = super()._decide(logits, self._controller.eta, start)
        self._controller.saw_first(outcomes)
        return outcomes, survivors

    def _refined(
        self, waiting: Sequence[Outcome], answers: tuple[Array, NDArray[np.int64]], start: float
    ) -> list[Outcome]:
        refined = super()._refined(waiting, answers, start)
        self._controller.saw_refined(refined)
        return refined


def _moved_by_budget(eta: float) -> ConfigError:
    return ConfigError(
        f"The threshold eta={eta!r} was given to a pipeline whose budget moves it.",
        "Bound it with min_eta and max_eta of with_budget, or use the pipeline without a budget.",
    )
