"""Reads what a user gives into the arrays that the network takes, and times it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sacvit_deploy.errors import ImageError
from sacvit_deploy.samples import Sample

if TYPE_CHECKING:
    from sacvit_deploy.runtime.pictures import PictureSource
    from sacvit_deploy.runtime.preprocess import Preprocessor
    from sacvit_deploy.runtime.scheduler import Array


class PictureReader:
    """Prepares pictures and reports how long each took."""

    def __init__(
        self,
        preprocess: Preprocessor,
        clock: Callable[[], float],
        prepared: Callable[[float], None],
    ) -> None:
        """Join the parts.

        Args:
            preprocess: Turns a picture into the input tensor.
            clock: Current time in seconds.
            prepared: Called with the milliseconds each picture took.
        """
        self._preprocess = preprocess
        self._clock = clock
        self._prepared = prepared

    def read(self, source: PictureSource) -> Array:
        """Read one picture into its input tensor (3, H, W).

        Raises:
            ImageError: The picture cannot be read.
        """
        start = self._clock()
        array = self._preprocess(source)
        self._prepared((self._clock() - start) * 1e3)
        return array

    def read_all(
        self, sources: Sequence[PictureSource], start: int
    ) -> tuple[list[Array], ImageError | None]:
        """Read pictures up to the first that cannot be read.

        Args:
            sources: The pictures.
            start: Index of the first of them, for the error.

        Returns:
            Input tensors (3, H, W), and the error that ended the list, if any.
        """
        arrays: list[Array] = []
        for index, source in enumerate(sources, start):
            try:
                arrays.append(self.read(source))
            except ImageError as error:  # noqa: PERF203  the loop ends here
                failure = ImageError(f"At index {index}: {error.problem}", error.fix)
                failure.__cause__ = error
                return arrays, failure
        return arrays, None


def name_of(source: PictureSource) -> str | None:
    """Return the path as it was given; None for a picture without one."""
    if isinstance(source, Sample):
        return source.name
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
