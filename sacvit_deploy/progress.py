"""The progress of long work: the share that is done, and words for the present step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

OnProgress = Callable[[float, str], None]
"""Takes the share of the work that is done, in [0, 1], and what is being done."""

_TOO_SOON_S, _THREE_DIGITS = 0.5, 100


def silent(share: float, text: str) -> None:
    """Ignore a report."""


@dataclass
class Steps:
    """Steps of one task, each with a weight, reported as shares of the whole.

    Attributes:
        on_progress: Takes the reports.
        weights: Expected time of each step by name, in any unit, in the order of the steps.
    """

    on_progress: OnProgress
    weights: Mapping[str, float]

    def part(self, name: str) -> OnProgress:
        """Return what reports the progress of one step."""
        names, total = list(self.weights), sum(self.weights.values())
        start = sum(self.weights[n] for n in names[: names.index(name)]) / total
        return within(self.on_progress, start, start + self.weights[name] / total)


def within(on_progress: OnProgress, start: float, stop: float) -> OnProgress:
    """Return what reports the progress of a part of a task.

    Args:
        on_progress: Takes the reports of the whole.
        start: Share of the whole that is done before the part.
        stop: Share of the whole that is done after it.
    """
    return lambda share, text: on_progress(min(1.0, start + share * (stop - start)), text)


@dataclass(frozen=True)
class PictureCount:
    """Progress of a task that takes pictures one after another.

    Attributes:
        total: Their number; None if it is not known.
        text: What is done with them; empty where this is clear.
        start: When the first one began, on the clock `time.perf_counter`.
    """

    total: int | None
    text: str = ""
    start: float = field(default_factory=time.perf_counter)

    def share(self, done: int) -> float:
        """Share of the pictures that is done; 0 if their number is not known."""
        return done / self.total if self.total else 0.0

    def in_words(self, done: int, before: int = 0) -> str:
        """How many are done, how many per second, and the time left.

        Args:
            done: Pictures that are done.
            before: Those of them that were done before the start.
        """
        seconds = time.perf_counter() - self.start
        words = f"{self.text}: {done:,}" if self.text else f"{done:,}"
        words += f" of {self.total:,}" if self.total else ""
        words += "" if self.text else " pictures"
        if done <= before or seconds < _TOO_SOON_S:
            return words
        rate = (done - before) / seconds
        words += f", {rate:.{0 if rate >= _THREE_DIGITS else 1}f}/s"
        left = (self.total or 0) - done
        return f"{words}, {clock(left / rate)} left" if left > 0 else words


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some: 0:07, 12:34, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
