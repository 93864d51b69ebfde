"""Preprocessing of a picture to an input tensor, for running, evaluating and training alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Union

import numpy as np
import numpy.typing as npt
from PIL import Image

from sacvit_deploy.runtime.pictures import PictureSource, read_picture, read_reduced
from sacvit_deploy.runtime.reduced import Box, Reading
from sacvit_deploy.spec import Decode, InputKind, Preprocessing

Pixels = Union["npt.NDArray[np.float32]", "npt.NDArray[np.uint8]"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Half the width of the wider filter, bicubic, in pixels of the coarser grid.
_REACH = 2
# Pixels per pixel of the result that are left to the filter, after JPEG decoding at reduced scale
# and after averaging blocks. With 2 instead, more than 0.5 % of early exits changed.
_DRAFT_GAP, _BLOCK_GAP = 2.5, 3.0
# Pixels. Below that, Pillow is faster with the rows cut out first. The values are the same.
_QUICK_TO_COPY = 1 << 20


@dataclass(frozen=True)
class Preprocessor:
    """Resize, crop or pad and, for float graphs, normalise. Safe to share between threads.

    Rounding follows timm and torchvision. The picture is resized to cover
    `floor(crop / crop_ratio)` in both axes, one axis exactly and the other rounded down
    (torchvision `Resize`, timm `scale_size`). The crop starts at `round((resized - crop) / 2)`,
    halves to even (`CenterCrop`). For a square crop this is "shorter side to 256, crop 224".

    Only the cropped part is resampled. This nearly halves the time, and a 1x5000 picture never
    becomes 256x1,280,000. Compared with resizing the whole picture, few values differ, and by at
    most 2 of 255, because Pillow stores the crop's corners in single precision. Pictures many
    times as high as wide can differ more under Pillow 13, which resizes them columns first.

    With `fit="squash"`, both axes are resized to `floor(crop / crop_ratio)`, whatever the ratio of
    the sides, as the image processor of Hugging Face's ViT does.

    With `fit="pad"`, the picture is resized by one factor for both axes, to round numbers of
    pixels, and lies in the upper left corner. The rest has the mean colour, rounded to 8 bits,
    which is about 0 after the normalisation.

    With `decode="fast"`, large pictures are reduced by whole numbers before they are resampled:
    JPEG files of at least 5 times the size of the resized picture while they are decoded, others
    of at least 6 times the size by averaging blocks. At least 2.5, or 3, pixels per pixel of the
    result are left to the filter. Smaller pictures give the same as with `exact`.

    Attributes:
        spec: Sizes, filter, mean and std.
        input_kind: Input of the graph: `float` normalised values, or `uint8` pixels.
        decode: `exact` resamples every pixel of the picture; `fast` reduces large pictures first.
    """

    spec: Preprocessing
    input_kind: InputKind = "float"
    decode: Decode = "exact"

    def __call__(self, source: PictureSource) -> Pixels:
        """Make the input tensor of one picture.

        Args:
            source: Any source that `read_picture` accepts.

        Returns:
            (3, H, W), RGB, C-contiguous: float32 `(x / 255 - mean) / std`, or uint8 `x`.

        Raises:
            ImageError: The picture cannot be read.
        """
        return self.tensor(self.read(source))

    def tensor(self, reading: Reading) -> Pixels:
        """Make the input tensor of a picture that `read` has read; see `__call__`."""
        pixels = self._crop(reading)
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
        if self.spec.fit == "pad":
            return 0.0, 0.0, float(width), float(height)
        crop_height, crop_width = self.spec.crop
        cover_width, cover_height = self._cover
        if self.spec.fit == "squash":
            resized_width, resized_height = cover_width, cover_height
        elif width * cover_height <= height * cover_width:
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

    def filled(self, width: int, height: int) -> tuple[int, int]:
        """Find the part of the input tensor that shows a picture, in its upper left corner.

        Args:
            width: Width of the picture in pixels.
            height: Height of the picture in pixels.

        Returns:
            (height, width) in pixels of the input; all of it unless `fit` is `pad`.
        """
        most_high, most_wide = self.spec.crop
        if self.spec.fit != "pad":
            return most_high, most_wide
        scale = min(most_high / height, most_wide / width)
        return (
            min(most_high, max(1, round(height * scale))),
            min(most_wide, max(1, round(width * scale))),
        )

    @property
    def _cover(self) -> tuple[int, int]:
        """(width, height) that the resized picture covers, in pixels."""
        height, width = (math.floor(side / self.spec.crop_ratio) for side in self.spec.crop)
        return width, height

    def read(self, source: PictureSource) -> Reading:
        """Read a picture, whole or at the scale that is enough; `ImageError` if it cannot be."""
        if self.decode == "exact":
            return Reading.whole(read_picture(source))
        width, height = self._cover
        return read_reduced(source, (math.ceil(_DRAFT_GAP * width), math.ceil(_DRAFT_GAP * height)))

    def _crop(self, reading: Reading) -> npt.NDArray[np.uint8]:
        """Resample only the crop box, rows first; each pass rounds to 8 bits."""
        height, width = self.filled(*reading.size)
        picture, box = reading.picture, reading.located(self.crop_box(*reading.size))
        if self.decode == "fast":
            picture, box = _box_reduced(picture, box, (width, height))
        left, top, right, bottom = box
        reach = _reach(top, bottom, height)
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
        pixels = np.array(np.asarray(cropped).transpose(2, 0, 1), order="C")
        return pixels if (height, width) == self.spec.crop else self._padded(pixels)

    def _padded(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        mean = np.rint(255 * np.array(self.spec.mean)).clip(0, 255).astype(np.uint8)
        canvas = np.empty((3, *self.spec.crop), np.uint8)
        canvas[:] = mean.reshape(3, 1, 1)
        canvas[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        return canvas


def _reach(low: float, high: float, pixels: int) -> float:
    """How far beyond a part of one axis the filter reads when it makes some pixels of the part."""
    return _REACH * max(1.0, (high - low) / pixels) + 1


def _box_reduced(picture: Image.Image, box: Box, size: tuple[int, int]) -> tuple[Image.Image, Box]:
    """Average blocks as far as `_BLOCK_GAP` allows; return the picture and the box in it."""
    edges = (box[0], box[2]), (box[1], box[3])
    across, down = (
        max(1, math.floor((high - low) / pixels / _BLOCK_GAP))
        for (low, high), pixels in zip(edges, size, strict=True)
    )
    if across == down == 1:
        return picture, box
    reach_x, reach_y = (_reach(*edge, n) for edge, n in zip(edges, size, strict=True))
    left, top = max(0, math.floor(box[0] - reach_x)), max(0, math.floor(box[1] - reach_y))
    right = min(picture.width, math.ceil(box[2] + reach_x))
    bottom = min(picture.height, math.ceil(box[3] + reach_y))
    reduced = picture.reduce((across, down), (left, top, right, bottom))
    return reduced, (
        (box[0] - left) / across,
        (box[1] - top) / down,
        (box[2] - left) / across,
        (box[3] - top) / down,
    )
