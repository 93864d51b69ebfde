"""Random numbers without a state: each draw is named, so that nothing has to be saved to resume."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from sacvit_deploy.errors import DataError
from sacvit_deploy.samples import Sample, SampleSet, read_samples
from sacvit_deploy.training.augmentation import evaluation_tensor, training_tensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from sacvit_deploy.spec import Preprocessing
    from sacvit_deploy.training.config import AugmentationConfig, TrainConfig
    from sacvit_deploy.training.run import Processes


_SEED_BYTES = 8


def derived_seed(seed: int, *name: str | int) -> int:
    """A 63-bit seed for one purpose, for example `derived_seed(0, "picture", epoch, index)`."""
    text = "/".join(map(str, (seed, *name))).encode()
    digest = hashlib.blake2b(text, digest_size=_SEED_BYTES).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, *name: str | int) -> np.random.Generator:
    """A fresh numpy generator for one purpose."""
    return np.random.default_rng(derived_seed(seed, *name))


def seed_torch(seed: int, *name: str | int) -> None:
    """Set torch's own generators, on every device, for one purpose."""
    torch.manual_seed(derived_seed(seed, *name))


_K = TypeVar("_K")
_WHITE = (255, 255, 255, 255)

LabelledImage = tuple[torch.Tensor, int]
"""A normalised image (3, H, W) and its class index."""

# An error travels from a reading process as a value: torch would turn it into another one.
Item = LabelledImage | DataError


class Key(NamedTuple):
    """Which picture, and in which epoch, since each epoch varies it anew."""

    epoch: int
    picture: int


class UnreadablePictureWarning(UserWarning):
    """A picture could not be read, and another took its place."""


def open_samples(path: Path, num_classes: int) -> SampleSet:
    """List a data set whose classes are as many as the model's.

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
    """A class index must mean the same in both data sets.

    Raises:
        DataError: Names classes that only one of them has.
    """
    different = sorted(set(train.classes) ^ set(validation.classes))
    if different:
        raise DataError(
            f"{path} and the training pictures do not have the same classes; only one has: "
            f"{', '.join(different[:5])}{', ...' if len(different) > 5 else ''}.",
            "Give validation pictures of the classes that are trained.",
        )


def read_rgb(sample: Sample) -> Image.Image:
    """The picture upright, on white where it is transparent, in mode RGB.

    Raises:
        DataError: It cannot be decoded; the error names it.
    """
    try:
        with sample.open() as stream, Image.open(stream) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.has_transparency_data:
                layer = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer)
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"The picture {sample.name!r} cannot be read: {error}.",
            'Replace or remove it, or set on_corrupt = "skip" in [data].',
        ) from error


class TrainingPictures(Dataset[Item]):
    """Varied pictures, asked for by `Key`."""

    def __init__(self, samples: SampleSet, spec: Preprocessing, config: TrainConfig) -> None:
        self.samples = _Reopened(samples)
        self.spec = spec
        self.augmentation: AugmentationConfig = config.augmentation
        self.seed = config.seed
        self.skip = config.data.on_corrupt == "skip"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Item:
        return _item(self.read, key)

    def read(self, key: Key) -> LabelledImage:
        """The picture as this epoch varies it.

        Raises:
            DataError: It cannot be read, and may not be skipped.
        """
        label, picture = self._read(key.picture)
        generator = generator_for(self.seed, "picture", key.epoch, key.picture)
        return training_tensor(picture, self.spec, self.augmentation, generator), label

    def _read(self, index: int) -> tuple[int, Image.Image]:
        """The picture, or where that is allowed the next one that can be read."""
        for offset in range(len(self)):
            sample, label = self.samples[(index + offset) % len(self)]
            try:
                return label, read_rgb(sample)
            except DataError as error:
                if not self.skip:
                    raise
                warnings.warn(error.problem, UnreadablePictureWarning, stacklevel=2)
        raise DataError("No picture of the data set can be read.", "Give another data set.")


class ValidationPictures(Dataset[Item]):
    """Pictures as the network sees them in use, in the order of the data set."""

    def __init__(self, samples: SampleSet, spec: Preprocessing) -> None:
        self.samples = _Reopened(samples)
        self.spec = spec

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        return _item(self.read, index)

    def read(self, index: int) -> LabelledImage:
        """The picture of that number.

        Raises:
            DataError: It cannot be read.
        """
        sample, label = self.samples[index]
        return evaluation_tensor(read_rgb(sample), self.spec), label


def _item(read: Callable[[_K], LabelledImage], key: _K) -> Item:
    try:
        return read(key)
    except DataError as error:
        return error


def collate(items: list[Item]) -> tuple[Tensor, Tensor] | DataError:
    """A batch (B, 3, H, W) and (B,), or the first error among its items."""
    for item in items:
        if isinstance(item, DataError):
            return item
    batch: tuple[Tensor, Tensor] = default_collate(items)
    return batch


def read_batches(loader: DataLoader[Item]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a loader that uses `collate`.

    Raises:
        DataError: A picture cannot be read.
    """
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        image, label = batch
        yield image, label


class _Reopened:
    """Samples whose zip every process opens for itself: a file position cannot be shared."""

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


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order in which an epoch takes the pictures, (size,) int64."""
    return generator_for(seed, "order", epoch).permutation(size)


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
