from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.spec import Preprocessing
from sacvit_deploy.training.augmentation import (
    OPERATIONS,
    erase,
    mix_batch,
    rand_augment,
    random_box,
    training_tensor,
)
from sacvit_deploy.training.config import AugmentationConfig

DEIT = AugmentationConfig()
STILL = AugmentationConfig(1.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    rows, columns = np.mgrid[0:40, 0:60]
    pixels = np.stack([4 * columns, 6 * rows, 2 * (rows + columns)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def test_the_same_draws_give_the_same_picture(picture):
    preprocessor = Preprocessor(Preprocessing((32, 32)))
    one, same, other = (
        training_tensor(picture, preprocessor, DEIT, generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (3, 32, 32)
    assert one.dtype == torch.float32


def test_flip(picture):
    preprocessor, always = (
        Preprocessor(Preprocessing((40, 60), 1.0)),
        dataclasses.replace(STILL, flip=1.0),
    )
    plain, mirrored = (
        training_tensor(picture, preprocessor, config, generator()) for config in (STILL, always)
    )
    assert torch.equal(plain.flip(-1), mirrored)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_filter_and_the_normalisation_are_the_runtimes(picture, interpolation):
    """The largest box of that aspect is the whole picture, at its own size."""
    spec = Preprocessing((40, 60), 1.0, interpolation)
    still = training_tensor(picture, Preprocessor(spec), STILL, generator())
    assert torch.equal(still, torch.from_numpy(Preprocessor(spec)(picture)))
    assert still.is_contiguous()


def test_boxes_lie_inside_and_cover_enough():
    areas = []
    for seed in range(200):
        left, top, right, bottom = random_box((60, 40), 0.3, 1.0, generator(seed))
        assert 0 <= left < right <= 60
        assert 0 <= top < bottom <= 40
        areas.append((right - left) * (bottom - top) / 2400)
    assert min(areas) > 0.29
    assert np.ptp(areas) > 0.2


def test_a_box_that_never_fits_becomes_the_centre():
    assert random_box((1000, 10), 1.0, 1.0, generator()) == (495, 0, 505, 10)


def test_erase_changes_one_rectangle():
    image = torch.zeros(3, 32, 32)
    erase(image, generator(3))
    changed = (image != 0).any(0)
    rows, columns = changed.any(1).sum(), changed.any(0).sum()
    assert 0 < changed.sum() == rows * columns < 32 * 32


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.9])
def test_operations_keep_size_and_mode(picture, operation, strength):
    result = operation(picture, strength)
    assert (result.size, result.mode) == (picture.size, "RGB")


def test_rand_augment_changes_most_pictures(picture):
    changed = [rand_augment(picture, 2, 9.0, generator(seed)) != picture for seed in range(40)]
    assert 20 <= sum(changed) < 40


def test_mixing_keeps_sums():
    images = torch.stack([torch.full((3, 16, 16), float(v)) for v in range(4)])
    targets = torch.eye(4)
    for config in (
        dataclasses.replace(STILL, mixup=0.8),
        dataclasses.replace(STILL, cutmix=1.0),
        DEIT,
    ):
        mixed, probabilities = mix_batch(images, targets, config, generator(5))
        torch.testing.assert_close(probabilities.sum(1), torch.ones(4))
        # Picture i and its opposite 3 - i have constant values, so the mean tells the share.
        share = probabilities[0, 0].item()
        assert 0 < share < 1
        assert mixed[0].mean().item() == pytest.approx(3 * (1 - share), abs=1e-5)


def test_no_mixing():
    images, targets = torch.rand(2, 3, 8, 8), torch.eye(2)
    assert mix_batch(images, targets, STILL, generator()) == (images, targets)
