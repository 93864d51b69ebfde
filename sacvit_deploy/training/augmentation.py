"""DeiT's augmentation of pictures and batches (Touvron et al. 2021, table 9).

Every draw comes from the generator that is passed in. A picture of an epoch is augmented the same
way in every process and after every interruption.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from sacvit_deploy.runtime.preprocess import Preprocessor

if TYPE_CHECKING:
    from torch import Tensor

    from sacvit_deploy.training.config import AugmentationConfig


Operation = Callable[[Image.Image, float], Image.Image]
"""Changes a picture by a strength in [-1, 1]. Operations without a direction use its size only."""

_ASPECT = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10
_ERASED_SHARE = (0.02, 1 / 3)
_ERASED_ASPECT = (0.3, 1 / 0.3)

_MAX_MAGNITUDE = 10.0
_MAGNITUDE_DEVIATION = 0.5
_APPLY_PROBABILITY = 0.5
# ImageNet's mean colour fills the area that a shift or a rotation leaves empty.
_FILL = (124, 116, 104)
_LARGEST_ROTATION = 30.0  # degrees
_LARGEST_SHEAR = 0.3
_LARGEST_SHIFT = 0.45  # share of the side


def training_tensor(
    picture: Image.Image,
    preprocessor: Preprocessor,
    config: AugmentationConfig,
    generator: np.random.Generator,
) -> Tensor:
    """Augment an RGB picture to a float32 tensor (3, H, W).

    The preprocessor gives the size, the filter and the normalisation.
    """
    height, width = preprocessor.spec.crop
    box = random_box(picture.size, config.crop_scale, width / height, generator)
    picture = picture.resize((width, height), preprocessor.resampling, box)
    if generator.random() < config.flip:
        picture = ImageOps.mirror(picture)
    if config.rand_augment_ops:
        magnitude = config.rand_augment_magnitude
        picture = rand_augment(picture, config.rand_augment_ops, magnitude, generator)
    image = torch.from_numpy(preprocessor.normalize(np.asarray(picture).transpose(2, 0, 1)))
    if generator.random() < config.erasing:
        erase(image, generator)
    return image


def random_box(
    size: tuple[int, int], smallest: float, aspect: float, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """Draw a box that covers a random share of a picture (Szegedy et al. 2015).

    Args:
        size: (width, height) of the picture in pixels.
        smallest: Least share of the area, in (0, 1].
        aspect: Width over height of the network's input. The box's aspect is 3/4 to 4/3 of it.
        generator: Source of the draws.

    Returns:
        (left, top, right, bottom) in pixels: the first of ten draws that fits, else the largest
        centred box of that aspect.
    """
    width, height = size
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * generator.uniform(smallest, 1.0)
        ratio = aspect * _log_uniform(_ASPECT, generator)
        box_width, box_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if box_width <= width and box_height <= height:
            left = generator.uniform(0, width - box_width)
            top = generator.uniform(0, height - box_height)
            return left, top, left + box_width, top + box_height
    box_width, box_height = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


def _log_uniform(limits: tuple[float, float], generator: np.random.Generator) -> float:
    return math.exp(generator.uniform(math.log(limits[0]), math.log(limits[1])))


def erase(image: Tensor, generator: np.random.Generator) -> None:
    """Fill a random rectangle of a normalised image (3, H, W) with normal noise, in place.

    See Zhong et al. 2020.
    """
    _, height, width = image.shape
    area = height * width * generator.uniform(*_ERASED_SHARE)
    ratio = _log_uniform(_ERASED_ASPECT, generator)
    rows = min(height, max(1, round(math.sqrt(area * ratio))))
    columns = min(width, max(1, round(math.sqrt(area / ratio))))
    top = int(generator.integers(height - rows + 1))
    left = int(generator.integers(width - columns + 1))
    noise = generator.standard_normal((3, rows, columns), dtype=np.float32)
    image[:, top : top + rows, left : left + columns] = torch.from_numpy(noise)


def mix_batch(
    images: Tensor, targets: Tensor, config: AugmentationConfig, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mix every picture with its opposite in the batch, by mixup or cutmix, as DeiT does.

    Images are (B, 3, H, W), targets (B, C) probabilities. The whole batch is mixed by the same
    share. If both parameters are above 0, each batch draws one of the two; if both are 0, the
    inputs themselves are returned.
    """
    if not (config.mixup or config.cutmix):
        return images, targets
    cut = bool(config.cutmix) and (not config.mixup or generator.random() < 0.5)
    parameter = config.cutmix if cut else config.mixup
    kept = float(generator.beta(parameter, parameter))
    if cut:
        images, kept = _cut_mix(images, kept, generator)
    else:
        images = kept * images + (1 - kept) * images.flip(0)
    return images, kept * targets + (1 - kept) * targets.flip(0)


def _cut_mix(images: Tensor, kept: float, generator: np.random.Generator) -> tuple[Tensor, float]:
    """Paste a rectangle of the opposite picture; return also the share that was kept."""
    height, width = images.shape[-2:]
    side = math.sqrt(1 - kept)
    centre_row, centre_column = generator.integers(height), generator.integers(width)
    top, bottom = _span(int(centre_row), int(height * side), height)
    left, right = _span(int(centre_column), int(width * side), width)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _span(centre: int, length: int, limit: int) -> tuple[int, int]:
    return max(0, centre - length // 2), min(limit, centre + length // 2)


def rand_augment(
    picture: Image.Image, operations: int, magnitude: float, generator: np.random.Generator
) -> Image.Image:
    """Apply random operations, each with probability 0.5 (RandAugment, Cubuk et al. 2020).

    The picture keeps its size and its mode, RGB. Strengths are DeiT's "increasing" ones: a larger
    magnitude always changes more. It is their mean, 0 to 10, with a deviation of 0.5.
    """
    for _ in range(operations):
        operation = OPERATIONS[generator.integers(len(OPERATIONS))]
        strength = generator.normal(magnitude, _MAGNITUDE_DEVIATION) / _MAX_MAGNITUDE
        strength = min(max(strength, 0.0), 1.0)
        direction = 1 if generator.random() < 0.5 else -1
        if generator.random() < _APPLY_PROBABILITY:
            picture = operation(picture, direction * strength)
    return picture


def _affine(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Operation:
    return lambda picture, strength: picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        matrix(picture, strength),
        resample=Image.Resampling.BICUBIC,
        fillcolor=_FILL,
    )


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda picture, strength: kind(picture).enhance(max(0.1, 1 + 0.9 * strength))


def _solarize_add(picture: Image.Image, strength: float) -> Image.Image:
    added = int(110 * abs(strength))
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return picture.point(table * 3)


# The order decides which operation a draw names.
OPERATIONS: tuple[Operation, ...] = (
    lambda picture, _: ImageOps.autocontrast(picture),
    lambda picture, _: ImageOps.equalize(picture),
    lambda picture, _: ImageOps.invert(picture),
    lambda picture, strength: picture.rotate(
        _LARGEST_ROTATION * strength, resample=Image.Resampling.BICUBIC, fillcolor=_FILL
    ),
    lambda picture, strength: ImageOps.posterize(picture, max(1, 4 - int(4 * abs(strength)))),
    lambda picture, strength: ImageOps.solarize(picture, 256 - int(256 * abs(strength))),
    _solarize_add,
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _affine(lambda _, strength: (1, _LARGEST_SHEAR * strength, 0, 0, 1, 0)),
    _affine(lambda _, strength: (1, 0, 0, _LARGEST_SHEAR * strength, 1, 0)),
    _affine(lambda picture, strength: (1, 0, _LARGEST_SHIFT * strength * picture.width, 0, 1, 0)),
    _affine(lambda picture, strength: (1, 0, 0, 0, 1, _LARGEST_SHIFT * strength * picture.height)),
)
