"""Gathers the hard pictures of a stream until the second stage is worth running."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import numpy as np

from sacvit_deploy.runtime.control.batch_cost import BatchCost
from sacvit_deploy.runtime.scheduler import (
    Array,
    ExitPolicy,
    FirstPass,
    Outcome,
    Scheduler,
    Tensors,
    join_rows,
)

# Refine at once if a full batch would save less than this share of the second stage's time.
_WORTH_WAITING = 0.05

_P = ParamSpec("_P")
_T = TypeVar("_T")

Done = list[tuple[int, Outcome]]
"""Positions in the stream, from 0, and the outcomes there."""


class Workers:
    """Threads that compute batches side by side.

    Attributes:
        ahead: Batches that may be at work while the caller prepares the next one.
    """

    def __init__(self, count: int = 1) -> None:
        """Prepare `count` threads, which start with the first batch; one is the caller's."""
        self._pool = ThreadPoolExecutor(count, "sacvit-worker") if count > 1 else None
        self.ahead = count if count > 1 else 0

    def submit(
        self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Future[_T]:
        """Call a function in a thread, after those that were submitted before."""
        if self._pool is not None:
            return self._pool.submit(function, *args, **kwargs)
        done: Future[_T] = Future()
        done.set_result(function(*args, **kwargs))
        return done

    def close(self) -> None:
        """End the threads; what is being computed is computed to its end."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


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
    this stream. Between calls, never more than `max_waiting` pictures are held, and two batches
    for each worker. One object belongs to one stream and one thread.

    The hand-off waits on the host, even if both stages compute on a GPU: rows of several batches
    are joined here, and a set of device buffers for every waiting batch would not fit a small
    board.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        policy: ExitPolicy,
        waiting: Waiting,
        workers: Workers | None = None,
    ) -> None:
        """Start with nothing waiting.

        Args:
            scheduler: Runs both stages.
            policy: Sets the exit threshold of every batch.
            waiting: When to run the second stage, and what to release.
            workers: Threads that compute; None is the caller's alone.
        """
        self._scheduler = scheduler
        self._policy = policy
        self._limits = waiting
        self._workers = workers or Workers()
        self._cost = BatchCost()
        self._passed = 0
        self._released = 0
        self._done: dict[int, Outcome] = {}
        self._waiting: deque[tuple[int, Outcome]] = deque()
        self._parts: list[Tensors] = []
        self._first_passes: deque[Future[FirstPass]] = deque()
        self._refining: deque[tuple[tuple[int, ...], Future[list[Outcome]]]] = deque()

    def push(self, pictures: Iterable[Array]) -> Done:
        """Add a batch of pictures (3, H, W); return the outcomes that are ready, oldest first."""
        run, images = self._scheduler.first_pass, self._scheduler.batch_of(list(pictures))
        self._first_passes.append(self._workers.submit(run, images, self._policy))
        while len(self._first_passes) > self._workers.ahead:
            self._take_first_pass()
        return self._release()

    def finish(self) -> Done:
        """Run the second stage for all that wait; return every outcome still held."""
        while self._first_passes:
            self._take_first_pass()
        if self._waiting:
            self._refine(len(self._waiting))
        while self._refining:
            self._take_refined()
        return self._release()

    def _take_first_pass(self) -> None:
        """Wait for the oldest batch in the first stage, and refine what should not wait."""
        first = self._first_passes.popleft().result()
        self._done.update(enumerate(first.outcomes, self._passed))
        for row in first.survivors.tolist():
            slot = self._passed + row
            self._waiting.append((slot, self._done.pop(slot)))
        if first.survivors.size:
            # Always a copy: the batch may be memory of the session, see `Scheduler.batch_of`.
            rows: Any = first.hand_off
            self._parts.append({n: rows[n].take(first.survivors, axis=0) for n in rows})
        self._passed += len(first.outcomes)
        full = self._limits.refine_batch
        while len(self._waiting) >= full:
            self._refine(full)
        if self._waiting and (self._is_late() or not self._pays_to_wait()):
            self._refine(len(self._waiting))

    def _is_late(self) -> bool:
        return self._passed - self._waiting[0][0] > self._limits.max_waiting

    def _pays_to_wait(self) -> bool:
        saved = self._cost.saved(len(self._waiting), self._limits.refine_batch)
        return saved is None or saved >= _WORTH_WAITING

    def _refine(self, count: int) -> None:
        """Start the second stage for the `count` pictures that wait longest."""
        pool = join_rows(self._parts)
        rest = {name: array[count:] for name, array in pool.items()}
        taken = {name: array[:count] for name, array in pool.items()}
        slots, waiting = zip(*[self._waiting.popleft() for _ in range(count)], strict=True)
        rows = np.arange(count, dtype=np.int64)
        run = self._scheduler.refine
        refined = self._workers.submit(run, waiting, taken, rows, self._policy)
        self._refining.append((slots, refined))
        self._parts = [rest] if self._waiting else []

    def _take_refined(self) -> None:
        """Wait for the pictures that have been in the second stage longest."""
        slots, future = self._refining.popleft()
        refined = future.result()
        self._cost.add(len(slots), len(slots) * refined[0].refine_ms)
        self._done.update(zip(slots, refined, strict=True))

    def _is_slow(self) -> bool:
        """Whether the oldest run of the second stage would hold back too much."""
        most = self._limits.max_waiting + self._limits.refine_batch * self._workers.ahead
        return self._passed - self._refining[0][0][0] > most

    def _release(self) -> Done:
        """Release what is done; in order, only what comes before the oldest that is not done."""
        while self._refining and (self._refining[0][1].done() or self._is_slow()):
            self._take_refined()
        if not self._limits.in_order:
            ready, self._done = sorted(self._done.items()), {}
            return ready
        ready = []
        while self._released in self._done:
            ready.append((self._released, self._done.pop(self._released)))
            self._released += 1
        return ready
