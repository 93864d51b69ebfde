"""Both stages around the exit: who leaves, who goes on, and the batch put together again."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.engines.session import sharing_memory
from sacvit_deploy.errors import EngineError
from sacvit_deploy.families.config import graph_specs
from sacvit_deploy.manifest import check_temperature
from sacvit_deploy.runtime.algorithm import confidence, exits, fine_index, select_tokens
from sacvit_deploy.spec import (
    FINE_INDEX,
    IMAGE,
    LOGITS,
    NON_TARGET_INDEX,
    SCORE,
    SURVIVOR_ROWS,
    TARGET_INDEX,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.engines.session import DeviceSession, Session
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.spec import Role, Selection

    Array = NDArray[Any]
    Tensors = Mapping[str, Array]


@dataclass(frozen=True)
class Outcome:
    """What the network says about one picture.

    Attributes:
        logits: Of the stage it left from, (C,).
        early_exit_confidence: Largest probability after the first stage, at the temperature of the
            exit; None where there is one stage only.
        target_index: Coarse indices that were looked at again, best first, (M,); None for a picture
            that left early.
        early_ms: This picture's share of the time its batch took in the first stage, or the only
            one.
        refine_ms: The same of the second stage, selection of tokens counted; 0 for a picture that
            left early.
    """

    logits: Array
    early_exit_confidence: float | None = None
    target_index: NDArray[np.int64] | None = None
    early_ms: float = 0.0
    refine_ms: float = 0.0

    def refined(
        self, logits: Array, target_index: NDArray[np.int64], refine_ms: float = 0.0
    ) -> Outcome:
        """The same picture after the second stage."""
        return replace(self, logits=logits, target_index=target_index, refine_ms=refine_ms)


@dataclass(frozen=True)
class FirstPass:
    """A batch after the first stage.

    Attributes:
        outcomes: One per picture, as if all had left.
        hand_off: What the second stage takes, one row per picture.
        survivors: Rows that go on, ascending, (K,).
    """

    outcomes: list[Outcome]
    hand_off: Tensors
    survivors: NDArray[np.int64]


class Scheduler:
    """Runs batches through one or two sessions; holds no state between calls.

    Where both graphs compute on one device and the second chooses its tokens itself, what the
    first leaves for it stays there: `run` copies the images in, the logits out, and the numbers of
    the surviving rows in. `first_pass` and `second_pass` always work with host arrays.
    """

    def __init__(
        self,
        config: ModelConfig,
        sessions: Mapping[Role, Session],
        selection: Selection = "host",
        temperature: float = 1.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Take the sessions of one network.

        Args:
            config: The network.
            sessions: `early_exit` and `refine`, or `single`.
            selection: What the refine graph was exported for: target tokens chosen by the `host`,
                or in the `graph`.
            temperature: Of the confidence that decides who leaves, above 0; no logits change.
            clock: Seconds since whenever; both stages are timed with it.

        Raises:
            ConfigError: `temperature` is out of range.
        """
        self.temperature = check_temperature(temperature)
        self.clock = clock
        self._config = config
        self._sessions = sessions
        self._selection = selection
        self._device_pair: tuple[DeviceSession, DeviceSession] | None = None
        specs = {spec.role: spec for spec in graph_specs(config, selection=selection)}
        if "refine" in specs:
            left = {spec.name for spec in specs["early_exit"].outputs}
            taken = {spec.name for spec in specs["refine"].inputs}
            self._handed_on = (left & taken) | {SCORE}
            if selection == "graph":
                self._device_pair = sharing_memory(sessions["early_exit"], sessions["refine"])

    def run(self, images: Array, eta: float) -> list[Outcome]:
        """Both stages for a batch; the second only for the pictures that did not leave.

        Args:
            images: (B, 3, H, W) with B at least 1, as the graphs take them.
            eta: Exit threshold, in [0, 1]; has no effect where there is one stage only.

        Raises:
            EngineError: A session failed, or gave logits that are not finite.
        """
        if self._device_pair is not None:
            return self._run_on_device(images, eta, *self._device_pair)
        first = self.first_pass(images, eta)
        if first.survivors.size:
            waiting = [first.outcomes[row] for row in first.survivors]
            refined = self.refine(waiting, first.hand_off, first.survivors)
            _put_back(first.outcomes, first.survivors, refined)
        return first.outcomes

    def _run_on_device(
        self, images: Array, eta: float, early_exit: DeviceSession, refine: DeviceSession
    ) -> list[Outcome]:
        """As `run`; only images, logits, survivors and their target indices cross."""
        keep = self._handed_on | {IMAGE}
        start = self.clock()
        arrays, kept = early_exit.run_on_device({IMAGE: images}, keep)
        outcomes, survivors = self._decide(arrays[LOGITS], eta, start)
        if survivors.size:
            start = self.clock()
            arrays, _ = refine.run_on_device({**kept, SURVIVOR_ROWS: survivors}, ())
            answers = _finite(arrays[LOGITS], "refine"), arrays[TARGET_INDEX]
            refined = self._refined([outcomes[row] for row in survivors], answers, start)
            _put_back(outcomes, survivors, refined)
        return outcomes

    def first_pass(self, images: Array, eta: float) -> FirstPass:
        """The first stage, or the only one; arguments and errors as in `run`."""
        start = self.clock()
        if "single" in self._sessions:
            logits = _finite(self._sessions["single"].run({IMAGE: images})[LOGITS], "single")
            ms = self._ms_each(start, len(logits))
            outcomes = [Outcome(row, early_ms=ms) for row in logits]
            return FirstPass(outcomes, {}, np.empty(0, np.int64))
        outputs = self._sessions["early_exit"].run({IMAGE: images})
        outcomes, survivors = self._decide(outputs[LOGITS], eta, start)
        hand_off = {IMAGE: images} | {name: outputs[name] for name in self._handed_on}
        return FirstPass(outcomes, hand_off, survivors)

    def _decide(
        self, logits: Array, eta: float, start: float
    ) -> tuple[list[Outcome], NDArray[np.int64]]:
        """What the first stage, begun at `start`, says of each picture, and the rows that go on."""
        sure = confidence(_finite(logits, "early_exit"), self.temperature)
        leaving = exits(sure, eta, self._config.stages.exit_comparison)
        ms = self._ms_each(start, len(logits))
        outcomes = [
            Outcome(row, value, early_ms=ms)
            for row, value in zip(logits, sure.tolist(), strict=True)
        ]
        return outcomes, np.flatnonzero(~leaving)

    def refine(
        self, waiting: Sequence[Outcome], hand_off: Tensors, rows: NDArray[np.int64]
    ) -> list[Outcome]:
        """As `second_pass`, timed: the outcomes of these rows after the second stage.

        Args:
            waiting: The outcomes of the rows after the first stage, K.
            hand_off: As the first pass left it.
            rows: Which rows of it, ascending, at least one, (K,).
        """
        start = self.clock()
        return self._refined(waiting, self.second_pass(hand_off, rows), start)

    def _refined(
        self, waiting: Sequence[Outcome], answers: tuple[Array, NDArray[np.int64]], start: float
    ) -> list[Outcome]:
        """The outcomes with what the second stage, begun at `start`, says: logits and targets."""
        ms = self._ms_each(start, len(waiting))
        return [
            outcome.refined(logits, targets, ms)
            for outcome, logits, targets in zip(waiting, *answers, strict=True)
        ]

    def _ms_each(self, start: float, pictures: int) -> float:
        """Milliseconds since `start` for each of so many pictures."""
        return (self.clock() - start) * 1e3 / pictures

    def second_pass(
        self, hand_off: Tensors, rows: NDArray[np.int64]
    ) -> tuple[Array, NDArray[np.int64]]:
        """The second stage for some rows of a batch.

        Args:
            hand_off: As the first pass left it.
            rows: Which rows, ascending, at least one, (K,).

        Returns:
            Logits (K, C) and the coarse indices that were looked at again, best first, (K, M).

        Raises:
            EngineError: The session failed, or gave logits that are not finite.
        """
        session = self._sessions["refine"]
        if self._selection == "graph":
            outputs = session.run({**hand_off, SURVIVOR_ROWS: rows})
            return _finite(outputs[LOGITS], "refine"), outputs[TARGET_INDEX]
        feeds = dict(take_rows(hand_off, rows))
        target, non_target = select_tokens(feeds.pop(SCORE), self._config.num_targets)
        feeds[TARGET_INDEX], feeds[NON_TARGET_INDEX] = target, non_target
        feeds[FINE_INDEX] = fine_index(target, self._config.coarse_grid[1])
        return _finite(session.run(feeds)[LOGITS], "refine"), target


def _put_back(outcomes: list[Outcome], rows: NDArray[np.int64], refined: Sequence[Outcome]) -> None:
    """Replace the outcomes of the pictures that went on."""
    for row, outcome in zip(rows, refined, strict=True):
        outcomes[row] = outcome


def take_rows(tensors: Tensors, rows: NDArray[np.int64]) -> Tensors:
    """Some rows of every tensor, ascending; nothing is copied when that is all of them."""
    if all(len(array) == len(rows) for array in tensors.values()):
        return tensors
    return {name: array[rows] for name, array in tensors.items()}


def join_rows(parts: Sequence[Tensors]) -> Tensors:
    """The rows of several batches under each other; nothing is copied when there is one batch."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _finite(logits: Array, role: Role) -> Array:
    """A NaN would leave or stay by accident, and be reported as a class."""
    if not np.isfinite(logits).all():
        raise EngineError(
            f"The {role} graph gave logits that are not finite (NaN or infinite).",
            "Check the bundle with sacvit-deploy verify; if it runs in half precision, export it "
            "with --precision fp32.",
        )
    return logits
