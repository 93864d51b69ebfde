"""Pictures of a run, in an order derived from the seed.

Random numbers have no state: each draw is named, so that a resumed run repeats the same draws.
"""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from sacvit_deploy.errors import DataError, ImageError
from sacvit_deploy.runtime.pictures import read_picture
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.samples import Sample, SampleSet, read_samples
from sacvit_deploy.spec import Preprocessing
from sacvit_deploy.training.augmentation import training_tensor

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sacvit_deploy.training.config import TrainConfig
    from sacvit_deploy.training.run import Processes


LabelledImage = tuple[torch.Tensor, int]
"""Normalised image (3, H, W) and class index."""

# A worker returns an error as a value, because torch would raise an error of another type.
Item = LabelledImage | DataError

_K = TypeVar("_K")
_SEED_BYTES = 8


def derived_seed(seed: int, *name: str | int) -> int:
    """Derive a 63-bit seed for one purpose: `derived_seed(0, "picture", epoch, index)`."""
    text = "/".join(map(str, (seed, *name))).encode()
    digest = hashlib.blake2b(text, digest_size=_SEED_BYTES).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, *name: str | int) -> np.random.Generator:
    """Make a fresh numpy generator for one purpose."""
    return np.random.default_rng(derived_seed(seed, *name))


def seed_torch(seed: int, *name: str | int) -> None:
    """Seed torch's own generators, on every device, for one purpose."""
    torch.manual_seed(derived_seed(seed, *name))


def open_samples(path: Path, num_classes: int) -> SampleSet:
    """List a data set with as many classes as the model.

    Raises:
        DataError: The data set cannot be read, or has another number of classes.
    """
    found = read_samples(path)
    if len(found.classes) != num_classes:
        raise DataError(
            f"{path} has {len(found.classes)} classes, the model {num_classes}.",
            f"Set num_classes = {len(found.classes)} in [model], or give the other data set.",
        )
    return found


def check_same_classes(train: SampleSet, validation: SampleSet, path: Path) -> None:
    """Check that a class index means the same in both data sets.

    Raises:
        DataError: Names the classes that only one of them has.
    """
    different = sorted(set(train.classes) ^ set(validation.classes))
    if different:
        raise DataError(
            f"{path} and the training pictures do not have the same classes; only one has: "
            f"{', '.join(different[:5])}{', ...' if len(different) > 5 else ''}.",
            "Give validation pictures of the classes that are trained.",
        )


class Key(NamedTuple):
    """A picture in an epoch; each epoch augments it anew."""

    epoch: int
    picture: int


class UnreadablePictureWarning(UserWarning):
    """A picture could not be read and was replaced by another."""


class TrainingPictures(Dataset[Item]):
    """Augmented pictures by `Key`."""

    def __init__(self, samples: SampleSet, spec: Preprocessing, config: TrainConfig) -> None:
        self.samples = _Reopened(samples)
        self.preprocessor = Preprocessor(spec)
        self.augmentation = config.augmentation
        self.seed = config.seed
        self.skip = config.data.on_corrupt == "skip"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Item:
        return _item(self.read, key)

    def read(self, key: Key) -> LabelledImage:
        """Read a picture and augment it for its epoch.

        Raises:
            DataError: The picture cannot be read and may not be skipped.
        """
        label, picture = self._read(key.picture)
        generator = generator_for(self.seed, "picture", key.epoch, key.picture)
        return training_tensor(picture, self.preprocessor, self.augmentation, generator), label

    def _read(self, index: int) -> tuple[int, Image.Image]:
        """Read a picture, or the next readable one if pictures may be skipped."""
        for offset in range(len(self)):
            sample, label = self.samples[(index + offset) % len(self)]
            try:
                return label, read_picture(sample)
            except ImageError as error:
                if not self.skip:
                    fix = 'Replace or remove it, or set on_corrupt = "skip" in [data].'
                    raise DataError(error.problem, fix) from error
                warnings.warn(error.problem, UnreadablePictureWarning, stacklevel=2)
        raise DataError("No picture of the data set can be read.", "Give another data set.")


class ValidationPictures(Dataset[Item]):
    """Pictures preprocessed as in deployment, in the order of the data set."""

    def __init__(self, samples: SampleSet, spec: Preprocessing) -> None:
        self.samples = _Reopened(samples)
        self.preprocessor = Preprocessor(spec)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        return _item(self.read, index)

    def read(self, index: int) -> LabelledImage:
        """Read and preprocess a picture by its position.

        Raises:
            DataError: The picture cannot be read.
        """
        sample, label = self.samples[index]
        try:
            return torch.from_numpy(self.preprocessor(sample)), label
        except ImageError as error:
            raise DataError(error.problem, "Replace or remove it.") from error


def _item(read: Callable[[_K], LabelledImage], key: _K) -> Item:
    try:
        return read(key)
    except DataError as error:
        return error


class _Reopened:
    """Samples whose zip each process opens for itself, since a file position cannot be shared."""

    def __init__(self, samples: SampleSet) -> None:
        index_of = {label: index for index, label in enumerate(samples.classes)}
        self._rows = [(sample.name, sample.label) for sample in samples.samples]
        self._labels = [index_of[sample.label] for sample in samples.samples]
        archives = {sample.archive.filename for sample in samples.samples if sample.archive}
        self._archive_path = next(iter(archives), None)
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Sample, int]:
        name, label = self._rows[index]
        return Sample(name, label, self._own_archive()), self._labels[index]

    def _own_archive(self) -> zipfile.ZipFile | None:
        if self._archive_path is None:
            return None
        worker = torch.utils.data.get_worker_info()
        owner = worker.id if worker else -1
        if self._archive is None or self._archive[0] != owner:
            self._archive = (owner, zipfile.ZipFile(self._archive_path))
        return self._archive[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_archive": None}


@dataclass(frozen=True)
class BatchPlan:
    """The division of epochs into steps, and of steps into parts.

    Attributes:
        pictures: Number of training pictures.
        batch_size: Pictures of one optimiser step, over all processes.
        parts: Number of parts that each process divides its share of a step into.
        processes: The processes that share a step.
        seed: Seed of the order.
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
        """Number of full batches in an epoch. The epoch does not use the remaining pictures."""
        return self.pictures // self.batch_size

    def parts_from(self, step: int) -> Iterator[list[Key]]:
        """Yield this process's parts from a step to the end of its epoch.

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


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Draw the order of an epoch's pictures, (size,) int64."""
    return generator_for(seed, "order", epoch).permutation(size)


def epoch_loader(
    pictures: TrainingPictures, plan: BatchPlan, step: int, config: TrainConfig
) -> DataLoader[Item]:
    """Load this process's parts from a step to the end of its epoch; to be iterated once.

    Args:
        pictures: Training pictures.
        plan: Division into parts.
        step: First step, counted over the whole run.
        config: Names the number of workers.
    """
    return DataLoader(
        pictures,
        batch_sampler=plan.parts_from(step),
        num_workers=config.data.workers,
        collate_fn=collate,
        pin_memory=plan.processes.device.type == "cuda",
    )


def collate(items: list[Item]) -> tuple[Tensor, Tensor] | DataError:
    """Stack items to a batch (B, 3, H, W) and (B,), or return their first error."""
    for item in items:
        if isinstance(item, DataError):
            return item
    batch: tuple[Tensor, Tensor] = default_collate(items)
    return batch


def read_batches(loader: DataLoader[Item]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a loader that uses `collate`.

    Raises:
        DataError: A picture cannot be read.
    """
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        image, label = batch
        yield image, label
