"""A request for a lower precision, and the pictures it names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from sacvit_deploy.decode import check_field, read_bounded
from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.errors import ConfigError, raised_as
from sacvit_deploy.runtime.pictures import PictureSource
from sacvit_deploy.samples import Sample, read_pictures, sample_pictures

LowPrecision = Literal["fp16", "int8"]
Method = Literal["minmax", "percentile", "entropy"]

_NOISE_PICTURES = 28
_SHIPPED = "the pictures of the package, and noise"


@dataclass(frozen=True)
class PrecisionRequest:
    """One lower precision to add to a bundle.

    Attributes:
        precision: `fp16`, or `int8` with explicit quantisation.
        data: Pictures to calibrate on and to compare decisions on; see `read_pictures`. None takes
            those of the package and noise, which is enough for `fp16` only.
        method: How a range of values becomes an INT8 scale.
        samples: Number of pictures to use, at least one; all of them if there are fewer.
        seed: Seed of their choice.
        keep: Names to keep in FP32: `place`, `node`, `role:place` or `role:node`. A place is a
            linear layer and the nodes behind it, such as `blocks.3.mlp.fc1`.
        threads: CPU threads of one operator; None leaves it to ONNX Runtime.

    Raises:
        ConfigError: A value is out of range, or INT8 is asked for without data.
        EngineError: The number of threads is out of range.
    """

    precision: LowPrecision
    data: Path | None = None
    method: Method = "minmax"
    samples: int = 256
    seed: int = 0
    keep: tuple[str, ...] = ()
    threads: int | None = None

    def __post_init__(self) -> None:
        SessionOptions(threads=self.threads)  # checks it
        for name, choices in (("precision", get_args(LowPrecision)), ("method", get_args(Method))):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"The {name} is {value!r}.", f"Choose {' or '.join(choices)}.")
        if self.samples < 1:
            raise ConfigError(f"{self.samples} calibration samples.", "Use at least one.")
        # It is stored in bundle.json, whose numbers are bounded.
        check_field(0 <= self.seed < 1 << 63, "seed", self.seed, "0 or more, of at most 64 bits")
        if self.precision == "int8" and self.data is None:
            raise ConfigError(
                "INT8 was asked for without calibration data.",
                "Name some hundred pictures like those the network will see: "
                "--calibration-data DATA (a folder of them, of class folders too; a zip; a table).",
            )


def read_keep(given: Iterable[str]) -> tuple[str, ...]:
    """Read names to keep in FP32.

    Args:
        given: Names, and paths of text files with one name a line; `#` begins a comment.

    Raises:
        ConfigError: A file cannot be read.
    """
    names: list[str] = []
    for item in given:
        lines = _lines(Path(item)) if os.path.isfile(item) else [item]  # of any length
        names += [name for line in lines if (name := line.partition("#")[0].strip())]
    return tuple(dict.fromkeys(names))


def _lines(file: Path) -> list[str]:
    fix, unreadable = "Give a text file with one name a line.", (OSError, UnicodeDecodeError)
    with raised_as(ConfigError, f"{file} cannot be read", fix, unreadable):
        return read_bounded(file).decode().splitlines()


@dataclass(frozen=True)
class PictureSet:
    """Pictures, and where they come from.

    Attributes:
        sources: The pictures, not read yet.
        name: Name of the data set.
        sha256: Hash of the encoded pictures in order; empty for those of the package.
    """

    sources: tuple[PictureSource, ...]
    name: str
    sha256: str = ""


def chosen_pictures(request: PrecisionRequest) -> PictureSet:
    """Choose the pictures of a request; the same request gives the same ones.

    Raises:
        DataError: The data set cannot be read.
    """
    if request.data is None:
        generator = np.random.default_rng(request.seed)
        noise = generator.integers(0, 256, (_NOISE_PICTURES, 64, 64, 3), dtype=np.uint8)
        return PictureSet((*sample_pictures(), *noise), _SHIPPED)
    chosen = choose_samples(read_pictures(request.data), request.samples, request.seed)
    return PictureSet(chosen, request.data.name, _digest(chosen))


def choose_samples(samples: Sequence[Sample], count: int, seed: int) -> tuple[Sample, ...]:
    """Choose `count` pictures, or all if there are fewer; the same seed gives the same ones."""
    generator = np.random.default_rng(seed)
    count = min(count, len(samples))
    picked = np.sort(generator.choice(len(samples), count, replace=False))
    return tuple(samples[index] for index in picked)


def _digest(samples: Iterable[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        with sample.open() as stream:
            digest.update(stream.read())
    return digest.hexdigest()
