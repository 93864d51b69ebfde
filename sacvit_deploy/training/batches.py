"""Which pictures make up which step, on which process: a function of the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader, Sampler

from sacvit_deploy.errors import DataError
from sacvit_deploy.training.pictures import Item, Key, TrainingPictures, collate, epoch_order

if TYPE_CHECKING:
    from sacvit_deploy.training.config import TrainConfig
    from sacvit_deploy.training.distributed import Processes


@dataclass(frozen=True)
class BatchPlan:
    """The division of epochs into steps, and of steps into parts.

    Attributes:
        pictures: In the training set.
        batch_size: Pictures of one optimiser step over all processes.
        parts: Parts a process computes its share of a step in.
        processes: How many there are, and which one this is.
        seed: Of the order.
    """

    pictures: int
    batch_size: int
    parts: int
    processes: Processes
    seed: int

    def __post_init__(self) -> None:
        if self.pictures < self.batch_size:
            raise DataError(
                f"The training set has {self.pictures} pictures, a step takes {self.batch_size}.",
                "Set a smaller batch_size in [schedule], or give more pictures.",
            )
        share = self.parts * self.processes.count
        if self.batch_size % share:
            raise DataError(
                f"A batch of {self.batch_size} cannot be divided among {self.processes.count} "
                f"processes in {self.parts} parts each.",
                f"Make batch_size a multiple of {share}.",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch; the few pictures left over are not used in it."""
        return self.pictures // self.batch_size

    def parts_from(self, step: int) -> Iterator[list[Key]]:
        """The parts of this process from a step to the end of its epoch.

        Args:
            step: 0-based, counted over the whole run.
        """
        epoch, first = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.seed, epoch, self.pictures)
        part_size = self.batch_size // (self.parts * self.processes.count)
        for number in range(first, self.steps_per_epoch):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            own = batch[self.processes.rank :: self.processes.count]
            for start in range(0, len(own), part_size):
                yield [Key(epoch, int(index)) for index in own[start : start + part_size]]


class _PartSampler(Sampler[list[Key]]):
    def __init__(self, plan: BatchPlan, step: int) -> None:
        self._plan = plan
        self._step = step

    def __iter__(self) -> Iterator[list[Key]]:
        return self._plan.parts_from(self._step)


def epoch_loader(
    pictures: TrainingPictures, plan: BatchPlan, step: int, config: TrainConfig
) -> DataLoader[Item]:
    """Loads the parts of this process from a step to the end of its epoch.

    Args:
        pictures: The data set.
        plan: How it is divided.
        step: Where to begin, counted over the whole run.
        config: For the number of workers.
    """
    return DataLoader(
        pictures,
        batch_sampler=_PartSampler(plan, step),
        num_workers=config.data.workers,
        collate_fn=collate,
        pin_memory=plan.processes.device.type == "cuda",
    )
