"""What can be asked of a lower precision."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.samples import read_pictures, sample_pictures

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.runtime.pictures import PictureSource
    from sacvit_deploy.runtime.preprocess import Preprocessor
    from sacvit_deploy.samples import Sample


LowPrecision = Literal["fp16", "int8"]
Method = Literal["minmax", "percentile", "entropy"]


@dataclass(frozen=True)
class PrecisionRequest:
    """One lower precision to add to a bundle.

    Attributes:
        precision: `fp16`, or `int8` with explicit quantisation.
        data: Pictures to calibrate on and to compare decisions on, as `read_pictures` takes them.
            None takes those of the package and noise, which is enough for `fp16` only.
        method: How a range of values becomes an int8 scale.
        samples: Pictures to use, at least one; all of them if there are fewer.
        seed: Of their choice.
        keep: What stays in FP32: `place`, `node`, `role:place` or `role:node`, where a place is a
            linear layer and what follows it, such as `blocks.3.mlp.fc1`.

    Raises:
        ConfigError: A value is out of range, or int8 is asked for without data.
    """

    precision: LowPrecision
    data: Path | None = None
    method: Method = "minmax"
    samples: int = 256
    seed: int = 0
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, choices in (("precision", get_args(LowPrecision)), ("method", get_args(Method))):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"The {name} is {value!r}.", f"Choose {' or '.join(choices)}.")
        if self.samples < 1:
            raise ConfigError(f"{self.samples} calibration samples.", "Use at least one.")
        if self.precision == "int8" and self.data is None:
            raise ConfigError(
                "INT8 was asked for without calibration data.",
                "Name some hundred pictures like those the network will see: "
                "--calibration-data DATA (a folder of them, of class folders too; a zip; a table).",
            )


def read_keep(given: Iterable[str]) -> tuple[str, ...]:
    """Names of what stays in FP32, from names and from files of names.

    Args:
        given: Each a name, or the path of a text file with one name a line; `#` begins a comment.

    Raises:
        ConfigError: A file cannot be read.
    """
    names: list[str] = []
    for item in given:
        lines = _lines(Path(item)) if Path(item).is_file() else [item]
        names += [name for line in lines if (name := line.partition("#")[0].strip())]
    return tuple(dict.fromkeys(names))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file} cannot be read: {error}.", "Give a text file with one name a line."
        ) from error


BATCH = 8
_NOISE_PICTURES = 28
_SHIPPED = "the pictures of the package, and noise"


@dataclass(frozen=True)
class PictureSet:
    """Pictures and where they are from.

    Attributes:
        sources: The pictures, not read yet.
        name: Of the data set.
        sha256: Over the encoded pictures in order; empty where they come with the package.
    """

    sources: tuple[PictureSource, ...]
    name: str
    sha256: str = ""

    def batches(self, preprocessor: Preprocessor) -> Iterator[NDArray[Any]]:
        """Images (B, 3, H, W) as the graphs take them, B at most `BATCH`."""
        for start in range(0, len(self.sources), BATCH):
            part = self.sources[start : start + BATCH]
            yield np.stack([preprocessor(picture) for picture in part])


def chosen_pictures(request: PrecisionRequest) -> PictureSet:
    """The pictures of a request; the same request gives the same ones.

    Raises:
        DataError: The data set cannot be read.
    """
    if request.data is None:
        return PictureSet(_shipped(request.seed), _SHIPPED)
    samples = read_pictures(request.data)
    generator = np.random.default_rng(request.seed)
    count = min(request.samples, len(samples))
    picked = np.sort(generator.choice(len(samples), count, replace=False))
    chosen = tuple(samples[index] for index in picked)
    return PictureSet(chosen, request.data.name, _digest(chosen))


def _shipped(seed: int) -> tuple[PictureSource, ...]:
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (_NOISE_PICTURES, 64, 64, 3), dtype=np.uint8)
    return (*sample_pictures(), *noise)


def _digest(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        with sample.open() as stream:
            digest.update(stream.read())
    return digest.hexdigest()
