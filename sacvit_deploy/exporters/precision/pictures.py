"""Which pictures a precision is calibrated on and compared on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.runtime.assets import sample_pictures
from sacvit_deploy.samples import read_pictures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.exporters.precision.request import PrecisionRequest
    from sacvit_deploy.runtime.pictures import PictureSource
    from sacvit_deploy.runtime.preprocess import Preprocessor
    from sacvit_deploy.samples import Sample

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

    def to_dict(self) -> dict[str, Any]:
        """For `bundle.json`."""
        return {"data": self.name, "data_sha256": self.sha256, "pictures": len(self.sources)}


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
