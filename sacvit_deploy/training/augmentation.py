"""RandAugment on Pillow pictures (Cubuk et al. 2020), with DeiT's "increasing" strengths.

Every draw comes from the generator that is passed in, so that the same picture of the same epoch
is varied in the same way, whichever process reads it and however often a run was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

if TYPE_CHECKING:
    from torch import Tensor

    from sacvit_deploy.spec import Preprocessing
    from sacvit_deploy.training.config import AugmentationConfig


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

_ASPECT = (3 / 4, 4 / 3)
_ERASED_SHARE = (0.02, 1 / 3)
_ERASED_ASPECT = (0.3, 1 / 0.3)
_CROP_ATTEMPTS = 10
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def training_tensor(
    picture: Image.Image,
    spec: Preprocessing,
    config: AugmentationConfig,
    generator: np.random.Generator,
) -> Tensor:
    """One varied picture.

    Args:
        picture: Mode RGB.
        spec: Size and normalisation of the result.
        config: How much variation.
        generator: Where every draw comes from.

    Returns:
        Normalised float32 (3, H, W).
    """
    height, width = spec.crop
    box = random_box(picture.size, config.crop_scale, width / height, generator)
    picture = picture.resize((width, height), _FILTERS[spec.interpolation], box)
    if generator.random() < config.flip:
        picture = ImageOps.mirror(picture)
    if config.rand_augment_ops:
        magnitude = config.rand_augment_magnitude
        picture = rand_augment(picture, config.rand_augment_ops, magnitude, generator)
    image = normalized(picture, spec)
    if generator.random() < config.erasing:
        erase(image, generator)
    return image


def evaluation_tensor(picture: Image.Image, spec: Preprocessing) -> Tensor:
    """Resize to cover the crop over its ratio, crop the centre, normalise.

    The same picture as the runtime's preprocessing up to rounding; the numbers that count are
    measured with that one, on an exported bundle.

    Args:
        picture: Mode RGB.
        spec: Size, filter and normalisation.

    Returns:
        Normalised float32 (3, H, W).
    """
    height, width = spec.crop
    cover = (math.floor(width / spec.crop_ratio), math.floor(height / spec.crop_ratio))
    scale = max(cover[0] / picture.width, cover[1] / picture.height)
    box_width, box_height = width / scale, height / scale
    left, top = (picture.width - box_width) / 2, (picture.height - box_height) / 2
    box = (max(0.0, left), max(0.0, top), left + box_width, top + box_height)
    box = (*box[:2], min(box[2], picture.width), min(box[3], picture.height))
    return normalized(picture.resize((width, height), _FILTERS[spec.interpolation], box), spec)


def normalized(picture: Image.Image, spec: Preprocessing) -> Tensor:
    """A picture of mode RGB as float32 (3, H, W), `(x / 255 - mean) / std`."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    return ((pixels / 255 - mean) / std).contiguous()


def random_box(
    size: tuple[int, int], smallest: float, aspect: float, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """Part of a picture that covers a random share of it (Inception's crop).

    Args:
        size: (width, height) of the picture in pixels.
        smallest: Least share of the area, in (0, 1].
        aspect: Width over height of the network's input; the box has it times 3/4 to 4/3.
        generator: Where the draws come from.

    Returns:
        (left, top, right, bottom) in pixels. After ten boxes that did not fit, the largest centred
        one of that aspect.
    """
    width, height = size
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * generator.uniform(smallest, 1.0)
        ratio = aspect * math.exp(generator.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        box_width, box_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if box_width <= width and box_height <= height:
            left = generator.uniform(0, width - box_width)
            top = generator.uniform(0, height - box_height)
            return left, top, left + box_width, top + box_height
    box_width, box_height = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


def erase(image: Tensor, generator: np.random.Generator) -> None:
    """Fill a random rectangle with normal noise, in place (Zhong et al. 2020).

    Args:
        image: Normalised, (3, H, W).
        generator: Where the draws come from.
    """
    _, height, width = image.shape
    area = height * width * generator.uniform(*_ERASED_SHARE)
    ratio = math.exp(generator.uniform(math.log(_ERASED_ASPECT[0]), math.log(_ERASED_ASPECT[1])))
    rows = min(height, max(1, round(math.sqrt(area * ratio))))
    columns = min(width, max(1, round(math.sqrt(area / ratio))))
    top = int(generator.integers(height - rows + 1))
    left = int(generator.integers(width - columns + 1))
    noise = generator.standard_normal((3, rows, columns), dtype=np.float32)
    image[:, top : top + rows, left : left + columns] = torch.from_numpy(noise)


def mix_batch(
    images: Tensor, targets: Tensor, config: AugmentationConfig, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mixup or cutmix of every picture with its opposite in the batch, as DeiT does.

    Args:
        images: (B, 3, H, W).
        targets: (B, C) probabilities.
        config: With both parameters above 0, one of the two is chosen for the batch.
        generator: Where the draws come from; the share is the same for the whole batch.

    Returns:
        Mixed images and targets; the inputs themselves where both parameters are 0.
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
    """Paste a rectangle of the opposite picture; return also the share that was really kept."""
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
