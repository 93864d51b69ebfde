"""Preprocessing of a picture to an input tensor, for running, evaluating and training alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Union

import numpy as np
import numpy.typing as npt
from PIL import Image

from sacvit_deploy.runtime.pictures import PictureSource, read_picture
from sacvit_deploy.spec import InputKind, Preprocessing

Pixels = Union["npt.NDArray[np.float32]", "npt.NDArray[np.uint8]"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Half the width of the wider filter, bicubic, in pixels of the coarser grid.
_REACH = 2
# Pixels. Below that, Pillow is faster with the rows cut out first. The values are the same.
_QUICK_TO_COPY = 1 << 20


@dataclass(frozen=True)
class Preprocessor:
    """Resize, centre crop and, for float graphs, normalise. Safe to share between threads.

    Rounding follows timm and torchvision. The picture is resized to cover
    `floor(crop / crop_ratio)` in both axes, one axis exactly and the other rounded down
    (torchvision `Resize`, timm `scale_size`). The crop starts at `round((resized - crop) / 2)`,
    halves to even (`CenterCrop`). For a square crop this is "shorter side to 256, crop 224".

    Only the cropped part is resampled. This nearly halves the time, and a 1x5000 picture never
    becomes 256x1,280,000. Compared with resizing the whole picture, few values differ, and by at
    most 2 of 255, because Pillow stores the crop's corners in single precision. Pictures many
    times as high as wide can differ more under Pillow 13, which resizes them columns first.

    Attributes:
        spec: Sizes, filter, mean and std.
        input_kind: Input of the graph: `float` normalised values, or `uint8` pixels.
    """

    spec: Preprocessing
    input_kind: InputKind = "float"

    def __call__(self, source: PictureSource) -> Pixels:
        """Make the input tensor of one picture.

        Args:
            source: Any source that `read_picture` accepts.

        Returns:
            (3, H, W), RGB, C-contiguous: float32 `(x / 255 - mean) / std`, or uint8 `x`.

        Raises:
            ImageError: The picture cannot be read.
        """
        pixels = self._crop(read_picture(source))
        return self.normalize(pixels) if self.input_kind == "float" else pixels

    def normalize(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """`(pixels / 255 - mean) / std` in float32.

        Args:
            pixels: uint8 of shape (..., 3, H, W), RGB.

        Returns:
            float32 of the same shape, C-contiguous.
        """
        values = pixels.astype(np.float32, order="C")
        values /= np.float32(255)
        values -= np.array(self.spec.mean, np.float32).reshape(3, 1, 1)
        values /= np.array(self.spec.std, np.float32).reshape(3, 1, 1)
        return values

    @property
    def resampling(self) -> Image.Resampling:
        """Pillow's filter for resizing."""
        return _FILTERS[self.spec.interpolation]

    def crop_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Find the part of a picture that the network sees.

        Args:
            width: Width of the picture in pixels.
            height: Height of the picture in pixels.

        Returns:
            (left, top, right, bottom) in pixels of the picture, with fractions.
        """
        crop_height, crop_width = self.spec.crop
        cover_height, cover_width = (math.floor(c / self.spec.crop_ratio) for c in self.spec.crop)
        if width * cover_height <= height * cover_width:
            resized_width, resized_height = cover_width, cover_width * height // width
        else:
            resized_width, resized_height = cover_height * width // height, cover_height
        left = round((resized_width - crop_width) / 2)
        top = round((resized_height - crop_height) / 2)
        return (
            left * width / resized_width,
            top * height / resized_height,
            (left + crop_width) * width / resized_width,
            (top + crop_height) * height / resized_height,
        )

    def _crop(self, picture: Image.Image) -> npt.NDArray[np.uint8]:
        """Resample only the crop box, rows first; each pass rounds to 8 bits."""
        height, width = self.spec.crop
        left, top, right, bottom = self.crop_box(*picture.size)
        reach = _REACH * max(1.0, (bottom - top) / height) + 1
        first = max(0, math.floor(top - reach))
        last = min(picture.height, math.ceil(bottom + reach))
        # Two calls, because a single one resizes the columns of high crops first in Pillow 13 and
        # the rows in Pillow 10. The order changes values by up to 20 of 255 at hard edges.
        rows, box = last - first, (left, first, right, last)
        if picture.width * rows < _QUICK_TO_COPY:
            picture, box = picture.crop((0, first, picture.width, last)), (left, 0, right, rows)
        strip = picture.resize((width, rows), self.resampling, box)
        cropped = strip.resize(
            (width, height), self.resampling, (0, top - first, width, bottom - first)
        )
        return np.array(np.asarray(cropped).transpose(2, 0, 1), order="C")
