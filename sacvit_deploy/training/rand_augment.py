"""RandAugment on Pillow pictures (Cubuk et al. 2020), with DeiT's "increasing" strengths.

Every draw comes from the generator that is passed in, so that the same picture of the same epoch
is varied in the same way, whichever process reads it and however often a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image, ImageEnhance, ImageOps

if TYPE_CHECKING:
    import numpy as np

Operation = Callable[[Image.Image, float], Image.Image]
"""A picture and a strength in [-1, 1] to a picture; what has no direction takes |strength|."""

MAX_MAGNITUDE = 10.0
_MAGNITUDE_DEVIATION = 0.5
_APPLY_PROBABILITY = 0.5
# ImageNet's mean colour fills what a shift or a turn leaves empty.
_FILL = (124, 116, 104)
_LARGEST_TURN = 30.0
_LARGEST_SHEAR = 0.3
_LARGEST_SHIFT = 0.45


def rand_augment(
    picture: Image.Image, operations: int, magnitude: float, generator: np.random.Generator
) -> Image.Image:
    """Apply randomly chosen operations, each with probability 0.5.

    Args:
        picture: Mode RGB.
        operations: How many are chosen.
        magnitude: Mean strength, 0 to 10; the deviation is 0.5.
        generator: Where the draws come from.

    Returns:
        A picture of the same size and mode.
    """
    for _ in range(operations):
        operation = OPERATIONS[generator.integers(len(OPERATIONS))]
        strength = generator.normal(magnitude, _MAGNITUDE_DEVIATION) / MAX_MAGNITUDE
        strength = min(max(strength, 0.0), 1.0)
        direction = 1 if generator.random() < 0.5 else -1
        if generator.random() < _APPLY_PROBABILITY:
            picture = operation(picture, direction * strength)
    return picture


def _affine(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BICUBIC,
        fillcolor=_FILL,
    )


def _shear_x(picture: Image.Image, strength: float) -> Image.Image:
    return _affine(picture, (1, _LARGEST_SHEAR * strength, 0, 0, 1, 0))


def _shear_y(picture: Image.Image, strength: float) -> Image.Image:
    return _affine(picture, (1, 0, 0, _LARGEST_SHEAR * strength, 1, 0))


def _shift_x(picture: Image.Image, strength: float) -> Image.Image:
    return _affine(picture, (1, 0, _LARGEST_SHIFT * strength * picture.width, 0, 1, 0))


def _shift_y(picture: Image.Image, strength: float) -> Image.Image:
    return _affine(picture, (1, 0, 0, 0, 1, _LARGEST_SHIFT * strength * picture.height))


def _rotate(picture: Image.Image, strength: float) -> Image.Image:
    return picture.rotate(
        _LARGEST_TURN * strength, resample=Image.Resampling.BICUBIC, fillcolor=_FILL
    )


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda picture, strength: kind(picture).enhance(max(0.1, 1 + 0.9 * strength))


def _posterize(picture: Image.Image, strength: float) -> Image.Image:
    return ImageOps.posterize(picture, max(1, 4 - int(4 * abs(strength))))


def _solarize(picture: Image.Image, strength: float) -> Image.Image:
    return ImageOps.solarize(picture, 256 - int(256 * abs(strength)))


def _solarize_add(picture: Image.Image, strength: float) -> Image.Image:
    added = int(110 * abs(strength))
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return picture.point(table * 3)


OPERATIONS: tuple[Operation, ...] = (
    lambda picture, _: ImageOps.autocontrast(picture),
    lambda picture, _: ImageOps.equalize(picture),
    lambda picture, _: ImageOps.invert(picture),
    _rotate,
    _posterize,
    _solarize,
    _solarize_add,
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _shear_x,
    _shear_y,
    _shift_x,
    _shift_y,
)
