"""Gathers the hard pictures of a stream until the second stage is worth running."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from sacvit_deploy.runtime.control.batch_cost import BatchCost
from sacvit_deploy.runtime.scheduler import (
    Array,
    ExitPolicy,
    Outcome,
    Scheduler,
    Tensors,
    join_rows,
    take_rows,
)

# Refine at once if a full batch would save less than this share of the second stage's time.
_WORTH_WAITING = 0.05

Done = list[tuple[int, Outcome]]
"""Positions in the stream, from 0, and the outcomes there."""


@dataclass(frozen=True)
class Waiting:
    """How long pictures wait for each other.

    Attributes:
        refine_batch: Pictures in one run of the second stage, 1 or more.
        max_waiting: Pictures held back at most, 1 or more.
        in_order: Release outcomes in the order of the stream, or else when they are done.
    """

    refine_batch: int
    max_waiting: int
    in_order: bool = True


class Rebatcher:
    """Runs the first stage at once, and the second when enough pictures wait.

    The second stage runs when `refine_batch` pictures wait for it, when the oldest of them has
    waited for `max_waiting` pictures, or when a fuller batch would save too little, as measured in
    this stream. Never more than `max_waiting` pictures are held between calls. One object belongs
    to one stream and one thread.

    The hand-off waits on the host, even if both stages compute on a GPU: rows of several batches
    are joined here, and a set of device buffers for every waiting batch would not fit a small
    board.
    """

    def __init__(self, scheduler: Scheduler, policy: ExitPolicy, waiting: Waiting) -> None:
        """Start with nothing waiting.

        Args:
            scheduler: Runs both stages.
            policy: Sets the exit threshold of every batch.
            waiting: When to run the second stage, and what to release.
        """
        self._scheduler = scheduler
        self._policy = policy
        self._limits = waiting
        self._cost = BatchCost()
        self._pushed = 0
        self._released = 0
        self._done: dict[int, Outcome] = {}
        self._waiting: deque[tuple[int, Outcome]] = deque()
        self._parts: list[Tensors] = []

    def push(self, images: Array) -> Done:
        """Add a batch (B, 3, H, W); return the outcomes that are ready, oldest first."""
        first = self._scheduler.first_pass(images, self._policy)
        self._done.update(enumerate(first.outcomes, self._pushed))
        for row in first.survivors.tolist():
            slot = self._pushed + row
            self._waiting.append((slot, self._done.pop(slot)))
        if first.survivors.size:
            self._parts.append(take_rows(first.hand_off, first.survivors))
        self._pushed += len(first.outcomes)
        full = self._limits.refine_batch
        while len(self._waiting) >= full:
            self._refine(full)
        if self._waiting and (self._is_late() or not self._pays_to_wait()):
            self._refine(len(self._waiting))
        return self._release()

    def finish(self) -> Done:
        """Run the second stage for all that wait; return every outcome still held."""
        if self._waiting:
            self._refine(len(self._waiting))
        return self._release()

    def _is_late(self) -> bool:
        return self._pushed - self._waiting[0][0] > self._limits.max_waiting

    def _pays_to_wait(self) -> bool:
        saved = self._cost.saved(len(self._waiting), self._limits.refine_batch)
        return saved is None or saved >= _WORTH_WAITING

    def _refine(self, count: int) -> None:
        """Run the second stage for the `count` pictures that wait longest."""
        pool = join_rows(self._parts)
        rest = {name: array[count:] for name, array in pool.items()}
        taken = {name: array[:count] for name, array in pool.items()}
        slots, waiting = zip(*[self._waiting.popleft() for _ in range(count)], strict=True)
        rows = np.arange(count, dtype=np.int64)
        refined = self._scheduler.refine(waiting, taken, rows, self._policy)
        self._cost.add(count, count * refined[0].refine_ms)
        self._done.update(zip(slots, refined, strict=True))
        self._parts = [rest] if self._waiting else []

    def _release(self) -> Done:
        """Release what is done; in order, only what comes before the oldest picture that waits."""
        if not self._limits.in_order:
            ready, self._done = sorted(self._done.items()), {}
            return ready
        end = self._waiting[0][0] if self._waiting else self._pushed
        slots, self._released = range(self._released, end), end
        return [(slot, self._done.pop(slot)) for slot in slots]
