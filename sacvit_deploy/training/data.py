"""Pictures of a run, in an order derived from the seed.

Random numbers have no state: each draw is named, so that a resumed run repeats the same draws.
"""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

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


class _Pictures(Dataset[Item], Generic[_K]):
    """Labelled pictures, whose zip each process opens: a file position cannot be shared."""

    def __init__(self, samples: SampleSet, spec: Preprocessing) -> None:
        self.preprocessor = Preprocessor(spec)
        index_of = {label: index for index, label in enumerate(samples.classes)}
        self._rows = [(x.name, x.label, index_of[x.label]) for x in samples.samples]
        archives = {sample.archive.filename for sample in samples.samples if sample.archive}
        self._archive_path = next(iter(archives), None)
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: _K) -> Item:
        try:
            return self.read(key)
        except DataError as error:
            return error

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_archive": None}

    def read(self, key: _K) -> LabelledImage:
        raise NotImplementedError

    def sample(self, index: int) -> tuple[Sample, int]:
        """A picture, not read yet, and the index of its class."""
        name, label, label_index = self._rows[index]
        if self._archive_path is None:
            return Sample(name, label), label_index
        worker = torch.utils.data.get_worker_info()
        owner = worker.id if worker else -1
        if self._archive is None or self._archive[0] != owner:
            self._archive = (owner, zipfile.ZipFile(self._archive_path))
        return Sample(name, label, self._archive[1]), label_index


class TrainingPictures(_Pictures[Key]):
    """Augmented pictures by `Key`."""

    def __init__(self, samples: SampleSet, spec: Preprocessing, config: TrainConfig) -> None:
        super().__init__(samples, spec)
        self.augmentation = config.augmentation
        self.seed = config.seed
        self.skip = config.data.on_corrupt == "skip"

    def read(self, key: Key) -> LabelledImage:
        """Read a picture, or the next readable one if it may be skipped, and augment it.

        Raises:
            DataError: The picture cannot be read and may not be skipped.
        """
        generator = generator_for(self.seed, "picture", key.epoch, key.picture)
        for offset in range(len(self)):
            sample, label = self.sample((key.picture + offset) % len(self))
            try:
                picture = read_picture(sample)
            except ImageError as error:
                if not self.skip:
                    fix = 'Replace or remove it, or set on_corrupt = "skip" in [data].'
                    raise DataError(error.problem, fix) from error
                warnings.warn(error.problem, UnreadablePictureWarning, stacklevel=2)
            else:
                image = training_tensor(picture, self.preprocessor, self.augmentation, generator)
                return image, label
        raise DataError("No picture of the data set can be read.", "Give another data set.")


class ValidationPictures(_Pictures[int]):
    """Pictures preprocessed as in deployment, in the order of the data set."""

    def read(self, index: int) -> LabelledImage:
        """Read and preprocess a picture by its position.

        Raises:
            DataError: The picture cannot be read.
        """
        sample, label = self.sample(index)
        try:
            return torch.from_numpy(self.preprocessor(sample)), label
        except ImageError as error:
            raise DataError(error.problem, "Replace or remove it.") from error


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


def read_batches(
    pictures: TrainingPictures | ValidationPictures,
    batches: Iterable[list[Key]] | Iterable[list[int]],
    workers: int,
    *,
    pin_memory: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, 3, H, W) and labels (B,) for each batch of keys.

    With 0 `workers` this process reads them itself. Pin the memory of batches for a GPU.

    Raises:
        DataError: A picture cannot be read.
    """
    for batch in DataLoader(
        pictures,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
    ):
        if isinstance(batch, DataError):
            raise batch
        image, label = batch
        yield image, label


def _collate(items: list[Item]) -> tuple[Tensor, Tensor] | DataError:
    """Stack items, or return their first error."""
    errors = (item for item in items if isinstance(item, DataError))
    return next(errors, None) or default_collate(items)
