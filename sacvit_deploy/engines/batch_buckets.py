"""Batch sizes that are recorded once each, and the sizes that are padded to them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sacvit_deploy.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class BatchBuckets:
    """The sizes of one dynamic axis.

    Attributes:
        smallest: That the engine takes; less is padded.
        largest: That the engine takes; more is refused.
        recorded: Sizes in use, ascending; empty where any size from smallest to largest is.
    """

    smallest: int
    largest: int
    recorded: tuple[int, ...] = ()

    @classmethod
    def of_range(
        cls, smallest: int, largest: int, chosen: Sequence[int] | None = None
    ) -> BatchBuckets:
        """Buckets within the range of an engine, its ends included.

        Args:
            smallest: That the engine takes.
            largest: That the engine takes.
            chosen: Sizes to record; None takes two for each doubling, so that less than a third of
                a batch is padding.
        """
        if chosen is None:
            powers = [1 << bit for bit in range(largest.bit_length())]
            chosen = sorted({*powers, *(3 * power for power in powers)})
        inside = {size for size in chosen if smallest <= size <= largest}
        return cls(smallest, largest, tuple(sorted(inside | {smallest, largest})))

    def padded(self, size: int) -> int:
        """The size to run `size` rows with.

        Raises:
            EngineError: The engine takes no batch as large.
        """
        if size > self.largest:
            raise EngineError(
                f"A batch of {size} was given; the engine takes {self.smallest} to {self.largest}.",
                f"Use smaller batches, or build it for larger ones: sacvit-deploy build-engine "
                f"BUNDLE --batch {self.smallest}:{self.largest}:{size}",
            )
        if not self.recorded:
            return max(size, self.smallest)
        return self.recorded[bisect_left(self.recorded, size)]
