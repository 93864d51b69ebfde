"""Features of pictures for detection, with the sessions of a backbone's bundle."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.engines.registry import OpenedSessions
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.manifest import Manifest
from sacvit_deploy.runtime.opened import OpenedBundle
from sacvit_deploy.runtime.pictures import PictureSource, name_of
from sacvit_deploy.runtime.scheduler import EVERY_PICTURE, Scheduler
from sacvit_deploy.spec import Decode, check_count

_CALL_BATCH = 1  # of several pictures: large ones compute no faster together


@dataclass(frozen=True)
class Features:
    """What a backbone says about one picture.

    Attributes:
        features: `c2` to `c5`, float32 (D, rows, columns); their cells are 4, 8, 16 and 32 pixels
            of the network's input apart.
        picture_size: (height, width) of the picture in pixels.
        filled: (height, width) of the part of the input that shows the picture, in its upper left
            corner; the rest is padding.
        image: Name of the picture, if it has one.
        kept_tokens: Tokens that each gate kept; None for a network without gates.
    """

    features: Mapping[str, NDArray[np.float32]]
    picture_size: tuple[int, int]
    filled: tuple[int, int]
    image: str | None = None
    kept_tokens: tuple[int, ...] | None = None

    @property
    def scale(self) -> tuple[float, float]:
        """(down, across): pixels of the input per pixel of the picture.

        Divide a place in the input, (y, x), by it for the place in the picture.
        """
        (height, width), (filled_height, filled_width) = self.picture_size, self.filled
        return filled_height / height, filled_width / width


class FeaturePipeline(OpenedBundle):
    """Computes features; `sacvit_deploy.load` makes one of a backbone's bundle.

    Safe to share between threads. As a context manager it is closed when the block ends.

    Attributes:
        manifest: Description of the bundle.
        preprocess: Turns a picture into the input tensor.
    """

    def __init__(
        self, manifest: Manifest, opened: OpenedSessions, *, decode: Decode = "fast"
    ) -> None:
        """Join the sessions of a bundle.

        Args:
            manifest: Description of the bundle.
            opened: Its graph, ready to run.
            decode: See `Preprocessor`.
        """
        super().__init__(manifest, opened, decode)
        self._scheduler = Scheduler(manifest.config, opened.sessions)

    @overload
    def __call__(self, images: PictureSource, *, batch_size: int = ...) -> Features: ...

    @overload
    def __call__(
        self, images: list[Any] | tuple[PictureSource, ...], *, batch_size: int = ...
    ) -> list[Features]: ...

    def __call__(
        self,
        images: PictureSource | list[Any] | tuple[PictureSource, ...],
        *,
        batch_size: int = _CALL_BATCH,
    ) -> Features | list[Features]:
        """Compute the features of one picture, or of several.

        Args:
            images: A path, a PIL picture, an HWC uint8 RGB array, or a list or tuple of them.
            batch_size: Pictures in the session at once.

        Returns:
            One result, or one per picture in the order given.

        Raises:
            ImageError: A picture cannot be read.
            ConfigError: `batch_size` is out of range.
            EngineError: The backend failed, gave values that are not finite, or the pipeline is
                closed.
        """
        check_count("batch_size", batch_size)
        if not isinstance(images, list | tuple):
            return self._run([images])[0]
        batch_size = min(batch_size, self.largest_batch or batch_size)
        batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        return [found for batch in batches for found in self._run(batch)]

    def _run(self, images: Sequence[PictureSource]) -> list[Features]:
        readings = [self.preprocess.read(image) for image in images]
        pictures = [self.preprocess.tensor(reading) for reading in readings]
        outcomes = self._scheduler.run(self._scheduler.batch_of(pictures), EVERY_PICTURE)
        results = []
        for image, reading, outcome in zip(images, readings, outcomes, strict=True):
            width, height = reading.size
            filled = self.preprocess.filled(width, height)
            kept = None if outcome.kept is None else tuple(outcome.kept.tolist())
            features = outcome.features or {}
            results.append(Features(features, (height, width), filled, name_of(image), kept))
        return results


def without_classes(path: str | os.PathLike[str]) -> ConfigError:
    """The error of what needs classes, for a bundle of a backbone."""
    return ConfigError(
        f"{os.fspath(path)} is a backbone: it gives the features c2 to c5, and no classes.",
        "Get them with sacvit_deploy.load(path)(picture).features; the commands verify, benchmark, "
        "inspect and build-engine work with it too.",
    )
