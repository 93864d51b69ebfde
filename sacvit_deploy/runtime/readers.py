"""Reading pictures ahead of the network, in threads, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from sacvit_deploy.engines.machine import usable_cores
from sacvit_deploy.errors import ImageError
from sacvit_deploy.runtime.control.budget_controller import BudgetController
from sacvit_deploy.runtime.control.stats import Stats
from sacvit_deploy.runtime.pictures import PictureSource, name_of
from sacvit_deploy.samples import Sample
from sacvit_deploy.spec import as_number, check_count

Array = NDArray[Any]

# A few keep the network busy, and each holds a decoded picture.
_USUAL_READERS, _MOST_READERS = 4, 64


OnError = Callable[[int, PictureSource, ImageError], None]
"""Called for a picture that cannot be read and is skipped: its position, the picture, and why."""


class Read(NamedTuple):
    """A picture that is ready for the network.

    Attributes:
        position: Place of the picture, from 0; those that cannot be read count too.
        name: Its name, or None.
        array: Its input tensor.
    """

    position: int
    name: str | None
    array: Array


def reader_threads(asked: int | None) -> int:
    """Return the number of threads that read; by default one per usable core, up to 4.

    Raises:
        ConfigError: It is not a whole number from 0 to 64.
    """
    if asked is None:
        return min(_USUAL_READERS, usable_cores())
    return 0 if as_number(asked) == 0 else check_count("readers", asked, _MOST_READERS)


@dataclass(frozen=True)
class Reader:
    """Reads and prepares pictures for one pipeline.

    Attributes:
        prepare: Turns a picture into its input tensor; may be called from several threads.
        clock: Current time in seconds.
        stats: Learns how long each picture took to read and prepare.
        controller: Learns how long the network waited for each picture; None without a budget.
    """

    prepare: Callable[[PictureSource], Array]
    clock: Callable[[], float]
    stats: Stats
    controller: BudgetController | None = None

    def one(self, source: PictureSource) -> Array:
        """Read one picture (3, H, W) in this thread.

        Raises:
            ImageError: It cannot be read.
        """
        return self._waited_for(lambda: self._timed(source))

    def ahead(
        self,
        sources: Iterable[PictureSource],
        *,
        threads: int,
        room: int,
        on_error: OnError | None = None,
    ) -> Generator[Read]:
        """Read pictures in order, files ahead of the caller in threads.

        `sources` is asked in the caller's thread. Other pictures than files may come from a camera,
        whose next frame is not to be waited for: each is prepared in the caller's thread when its
        turn comes, and nothing is taken ahead of it.

        Args:
            sources: Pictures, one after another.
            threads: Threads that read files; 0 reads all in the caller's thread.
            room: Files that may be taken ahead of the caller, 1 or more.
            on_error: Called for a picture that cannot be read, in order, in the caller's thread;
                None raises.

        Yields:
            The pictures that can be read; without `on_error` those before the first failure.

        Raises:
            ImageError: A picture cannot be read; of one without a name, the error has its index.
            BaseException: Whatever `sources` raises, after the pictures before it.
        """
        taken = _Taken(enumerate(sources), self._timed, threads)
        try:
            while taken.fill(room):
                index, source, future = taken.pending.popleft()
                try:
                    array = self._finished(index, source, future)
                except ImageError as error:
                    if on_error is None:
                        raise
                    on_error(index, source, error)
                else:
                    yield Read(index, name_of(source), array)
        finally:
            taken.close()
        if taken.failure is not None:
            raise taken.failure

    def _finished(self, index: int, source: PictureSource, future: Future[Array] | None) -> Array:
        try:
            return self.one(source) if future is None else self._waited_for(future.result)
        except ImageError as error:
            if name_of(source) is not None:
                raise
            raise ImageError(f"At index {index}: {error.problem}", error.fix) from error

    def _timed(self, source: PictureSource) -> Array:
        start = self.clock()
        array = self.prepare(source)
        self.stats.add_preprocess((self.clock() - start) * 1e3)
        return array

    def _waited_for(self, result: Callable[[], Array]) -> Array:
        start = self.clock()
        array = result()
        if self.controller is not None:
            self.controller.saw_preprocess((self.clock() - start) * 1e3)
        return array


class _Taken:
    """Pictures taken from a source, whose files are being read by threads.

    Attributes:
        pending: Index of each picture, the picture, and the tensor to come if it is a file.
        failure: What the source raised, or None.
    """

    def __init__(
        self,
        sources: Iterator[tuple[int, PictureSource]],
        read: Callable[[PictureSource], Array],
        threads: int,
    ) -> None:
        self.pending: deque[tuple[int, PictureSource, Future[Array] | None]] = deque()
        self.failure: BaseException | None = None
        self._sources = sources
        self._read = read
        self._ended = False
        self._pool = ThreadPoolExecutor(threads, "sacvit-reader") if threads else None

    def fill(self, room: int) -> bool:
        """Fill the queue from the source, as far as it has room; False if nothing is left."""
        try:
            while not self._ended and self._has_room(room):
                self._take(*next(self._sources))
        except StopIteration:
            self._ended = True
        except BaseException as failure:  # the pictures before it come first
            self.failure, self._ended = failure, True
        return bool(self.pending)

    def close(self) -> None:
        """End the threads; a file that is being read is read to its end."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _has_room(self, room: int) -> bool:
        if not self.pending:
            return True
        return self.pending[-1][-1] is not None and len(self.pending) < room

    def _take(self, index: int, source: PictureSource) -> None:
        is_file = isinstance(source, (str, bytes, os.PathLike, Sample))
        future = self._pool.submit(self._read, source) if self._pool and is_file else None
        self.pending.append((index, source, future))
