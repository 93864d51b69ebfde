"""Gathers the hard pictures of a stream until the second stage is worth running."""

from __future__ import annotations

from collections import deque
from itertools import islice

import numpy as np

from sacvit_deploy.runtime.scheduler import (
    Array,
    ExitPolicy,
    Outcome,
    Scheduler,
    Tensors,
    join_rows,
    take_rows,
)


class Rebatcher:
    """Runs the first stage at once and the second when enough pictures wait, in order.

    The second stage runs when `refine_batch` pictures wait for it, or when the oldest of them holds
    up `max_waiting` pictures. Never more than `max_waiting` pictures are held between calls. One
    object belongs to one stream and one thread.

    The hand-off waits on the host, even if both stages compute on a GPU: rows of several batches
    are joined here, and a set of device buffers for every waiting batch would not fit a small
    board.
    """

    def __init__(
        self, scheduler: Scheduler, policy: ExitPolicy, *, refine_batch: int, max_waiting: int
    ) -> None:
        """Start with nothing waiting.

        Args:
            scheduler: Runs both stages.
            policy: Sets the exit threshold of every batch.
            refine_batch: Pictures in one run of the second stage, 1 or more.
            max_waiting: Pictures held back at most, 1 or more.
        """
        self._scheduler = scheduler
        self._policy = policy
        self._refine_batch = refine_batch
        self._max_waiting = max_waiting
        self._held: deque[Outcome] = deque()
        self._first_held = 0
        self._waiting: deque[int] = deque()
        self._parts: list[Tensors] = []

    def push(self, images: Array) -> list[Outcome]:
        """Add a batch (B, 3, H, W); return the outcomes that are ready, oldest first."""
        first = self._scheduler.first_pass(images, self._policy)
        start = self._first_held + len(self._held)
        self._held.extend(first.outcomes)
        if first.survivors.size:
            self._waiting.extend((start + first.survivors).tolist())
            self._parts.append(take_rows(first.hand_off, first.survivors))
        while len(self._waiting) >= self._refine_batch:
            self._refine(self._refine_batch)
        ready = self._release()
        if len(self._held) > self._max_waiting:
            ready += self.finish()
        return ready

    def finish(self) -> list[Outcome]:
        """Run the second stage for all that wait; return every outcome still held."""
        if self._waiting:
            self._refine(len(self._waiting))
        return self._release()

    def _refine(self, count: int) -> None:
        """Run the second stage for the `count` pictures that wait longest."""
        pool = join_rows(self._parts)
        rest = {name: array[count:] for name, array in pool.items()}
        taken = {name: array[:count] for name, array in pool.items()}
        slots = [slot - self._first_held for slot in islice(self._waiting, count)]
        waiting = [self._held[slot] for slot in slots]
        rows = np.arange(count, dtype=np.int64)
        refined = self._scheduler.refine(waiting, taken, rows, self._policy)
        for slot, outcome in zip(slots, refined, strict=True):
            self._held[slot] = outcome
            self._waiting.popleft()
        self._parts = [rest] if self._waiting else []

    def _release(self) -> list[Outcome]:
        """Release every outcome before the oldest picture that waits."""
        end = self._waiting[0] if self._waiting else self._first_held + len(self._held)
        ready = [self._held.popleft() for _ in range(end - self._first_held)]
        self._first_held = end
        return ready
