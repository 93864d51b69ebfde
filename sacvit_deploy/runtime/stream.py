"""Divides a stream of pictures into batches, and refines the hard ones of several together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import IOBase

import numpy as np
from PIL import Image

from sacvit_deploy.decode import check_field
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.runtime.pictures import PictureSource
from sacvit_deploy.runtime.readers import Array, Read
from sacvit_deploy.runtime.rebatch import Done, Rebatcher, Waiting
from sacvit_deploy.runtime.scheduler import Outcome
from sacvit_deploy.samples import Sample
from sacvit_deploy.spec import as_number, check_count

STREAM_BATCH = 8
# With a quarter of the pictures hard, a full second-stage batch takes four first-stage batches.
_BATCHES_HELD = 4

Finished = tuple[int, "str | None", Outcome]
"""Position in the stream from 0, name of the picture, and its outcome."""


@dataclass(frozen=True)
class StreamOptions:
    """How a stream is divided into batches.

    Attributes:
        batch_size: Pictures in a session at once, in both stages.
        max_waiting: Results held back at most; None is four batches.
        max_delay_ms: Milliseconds that a result may be held back; None is no limit.
        in_order: Results in the order of the pictures, or else as they are done.

    Raises:
        ConfigError: A value is out of range.
    """

    batch_size: int
    max_waiting: int | None = None
    max_delay_ms: float | None = None
    in_order: bool = True

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        if self.max_waiting is not None:
            check_count("max_waiting", self.max_waiting)
        delay, wanted = self.max_delay_ms, "a number of milliseconds, 0 or more"
        check_field(delay is None or as_number(delay) >= 0, "max_delay_ms", delay, wanted)
        check_field(isinstance(self.in_order, bool), "in_order", self.in_order, "True or False")

    @property
    def waiting(self) -> Waiting:
        """What the rebatcher needs of it."""
        most = _BATCHES_HELD * self.batch_size if self.max_waiting is None else self.max_waiting
        return Waiting(self.batch_size, most, self.in_order)


class Stream:
    """One stream on its way through both stages; belongs to one thread.

    Iterating gives groups of pictures that are done at the same time. After the last comes the
    exception that ended the reading, if there was one.
    """

    def __init__(
        self,
        reads: Iterator[Read],
        rebatcher: Rebatcher,
        options: StreamOptions,
        clock: Callable[[], float],
    ) -> None:
        """Start a stream.

        Args:
            reads: Prepared pictures.
            rebatcher: Runs both stages; has not been used.
            options: The options that the rebatcher was made with.
            clock: Current time in seconds.
        """
        self._reads = reads
        self._rebatcher = rebatcher
        self._options = options
        self._clock = clock
        self._slot = 0
        self._batch: list[Array] = []
        # Positions and names of the pictures in the rebatcher, and when they were read.
        self._held: dict[int, tuple[int, str | None, float]] = {}

    def __iter__(self) -> Iterator[list[Finished]]:
        """Give groups until the reading ends; nothing is caught while a group is out."""
        end: BaseException | None = None
        while end is None:
            try:
                self._add(next(self._reads))
            except BaseException as failure:  # the results of all pictures before it come first
                end = failure
            late = self._is_late()
            if self._batch and (late or end or len(self._batch) == self._options.batch_size):
                yield self._push()
                late = self._is_late()
            if late or end:
                yield self._finished(self._rebatcher.finish())
        if not isinstance(end, StopIteration):
            raise end

    def _add(self, read: Read) -> None:
        self._held[self._slot] = read.position, read.name, self._clock()
        self._batch.append(read.array)
        self._slot += 1

    def _push(self) -> list[Finished]:
        pictures, self._batch = self._batch, []
        return self._finished(self._rebatcher.push(pictures))

    def _finished(self, done: Done) -> list[Finished]:
        return [(*self._held.pop(slot)[:2], outcome) for slot, outcome in done]

    def _is_late(self) -> bool:
        """Whether the oldest picture that is held has waited for too long."""
        if self._options.max_delay_ms is None or not self._held:
            return False
        *_, since = next(iter(self._held.values()))
        return (self._clock() - since) * 1e3 >= self._options.max_delay_ms


def checked_frames(frames: Iterable[PictureSource]) -> Iterator[PictureSource]:
    """Start a stream; `ConfigError` for one picture, which may be iterable too, and for others."""
    is_picture = isinstance(frames, (str, bytes, os.PathLike, Sample, Image.Image, IOBase))
    # An array of four axes is a stack of frames.
    if is_picture or (isinstance(frames, np.ndarray) and frames.ndim < 4):
        raise ConfigError(
            f"A stream of pictures was asked for and one {type(frames).__name__} found.",
            "Pass one picture to the pipeline itself, or a list of them to stream.",
        )
    try:
        return iter(frames)
    except TypeError as error:
        raise ConfigError(
            f"A stream of pictures was asked for and {type(frames).__name__} found.",
            "Pass anything that gives one picture after another, such as a list or a generator.",
        ) from error
