"""Resize, crop and normalisation against the plain way of doing them."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from PIL import Image

from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.samples import sample_pictures
from sacvit_deploy.spec import Preprocessing

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def noise(width, height):
    values = np.random.default_rng(width * 7919 + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def resize_then_crop(picture, spec):
    """torchvision's Resize(shorter side) and CenterCrop, for square crops."""
    side = spec.crop[0]
    shorter = math.floor(side / spec.crop_ratio)
    width, height = picture.size
    longer = int(shorter * max(width, height) / min(width, height))
    size = (shorter, longer) if width <= height else (longer, shorter)
    left, top = (round((s - side) / 2.0) for s in size)
    resized = picture.resize(size, FILTERS[spec.interpolation])
    return np.asarray(resized.crop((left, top, left + side, top + side))).transpose(2, 0, 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("crop", "ratio"), [(224, 0.875), (224, 0.9), (64, 1.0), (33, 0.95)])
@pytest.mark.parametrize("size", [(451, 300), (300, 451), (256, 256), (97, 61), (5, 4), (1, 1)])
def test_equals_resizing_all_and_then_cropping(size, crop, ratio, interpolation):
    spec = Preprocessing((crop, crop), ratio, interpolation)
    picture = noise(*size)
    result = Preprocessor(spec, "uint8")(picture)
    expected = resize_then_crop(picture, spec)
    difference = np.abs(result.astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.06


@pytest.mark.parametrize("path", sample_pictures(), ids=lambda path: path.stem)
def test_photographs_equal_resizing_all_and_then_cropping(path):
    spec = Preprocessing((224, 224))
    with Image.open(path) as picture:
        expected = resize_then_crop(picture, spec)
    difference = np.abs(Preprocessor(spec, "uint8")(path).astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.005


def test_float_is_the_normalised_uint8():
    spec = Preprocessing((64, 48))
    for path in sample_pictures():
        pixels = np.asarray(Preprocessor(spec, "uint8")(path), np.uint8)
        values = Preprocessor(spec, "float")(path)
        np.testing.assert_array_equal(values, Preprocessor(spec).normalize(pixels))
        mean, std = (np.reshape(v, (3, 1, 1)) for v in (spec.mean, spec.std))
        np.testing.assert_allclose(values, (pixels / 255 - mean) / std, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "dtype"), [("float", np.float32), ("uint8", np.uint8)])
@pytest.mark.parametrize("crop", [(224, 224), (32, 96), (1, 1)])
def test_layout(kind, dtype, crop):
    result = Preprocessor(Preprocessing(crop), kind)(noise(50, 40))
    assert result.shape == (3, *crop)
    assert result.dtype == dtype
    assert result.flags.c_contiguous
    assert result.flags.writeable


def test_channels_come_in_rgb_order():
    red = Image.new("RGB", (10, 10), (200, 100, 50))
    result = Preprocessor(Preprocessing((4, 4)), "uint8")(red)
    assert result[:, 0, 0].tolist() == [200, 100, 50]


def test_normalize_takes_batches():
    preprocess = Preprocessor(Preprocessing((8, 8)))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8)).astype(np.uint8)
    one_by_one = np.stack([preprocess.normalize(p) for p in pixels])
    np.testing.assert_array_equal(preprocess.normalize(pixels), one_by_one)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (3, 20_000), (20_000, 3)])
def test_elongated_pictures_stay_small_on_the_way(size):
    preprocess = Preprocessor(Preprocessing((224, 224)), "uint8")
    picture = noise(*size)
    start = time.process_time()
    assert preprocess(picture).shape == (3, 224, 224)
    assert time.process_time() - start < 0.5  # Resized as a whole they would take a gigabyte.


@pytest.mark.parametrize("crop", [(224, 224), (96, 160), (160, 96), (7, 500)])
@pytest.mark.parametrize("ratio", [0.5, 0.875, 1.0])
def test_crop_box_is_central_inside_and_keeps_the_aspect_ratio(crop, ratio):
    preprocess = Preprocessor(Preprocessing(crop, ratio))
    for width, height in [(640, 480), (480, 640), (1000, 1000), (4000, 3000), (3000, 4000)]:
        left, top, right, bottom = preprocess.crop_box(width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        scale_x, scale_y = crop[1] / (right - left), crop[0] / (bottom - top)
        assert scale_x == pytest.approx(scale_y, rel=0.02)
        # The crop covers its share of the tight axis: nothing is padded, little is lost.
        share = max((right - left) / width, (bottom - top) / height)
        assert share == pytest.approx(ratio, rel=0.1)
        assert (left + right) / 2 == pytest.approx(width / 2, abs=1 / scale_x)
        assert (top + bottom) / 2 == pytest.approx(height / 2, abs=1 / scale_y)


def test_whole_picture_at_its_own_size_is_unchanged():
    picture = noise(40, 24)
    result = Preprocessor(Preprocessing((24, 40), 1.0), "uint8")(picture)
    np.testing.assert_array_equal(result, np.asarray(picture).transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (3, 5000), (5000, 3), (9, 7)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_large_pictures_are_not_copied_and_give_the_same(monkeypatch, size, interpolation):
    preprocess = Preprocessor(Preprocessing((64, 48), 0.875, interpolation), "uint8")
    picture = noise(*size)
    expected = preprocess(picture)
    monkeypatch.setattr("sacvit_deploy.runtime.preprocess._QUICK_TO_COPY", 0)
    monkeypatch.setattr(picture, "crop", None)
    np.testing.assert_array_equal(preprocess(picture), expected)


def test_crop_box_inside_for_every_small_size():
    preprocess = Preprocessor(Preprocessing((13, 29), 0.93))
    for width in range(1, 60):
        for height in range(1, 60):
            left, top, right, bottom = preprocess.crop_box(width, height)
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height


def test_a_padded_picture_lies_in_the_corner_at_its_own_ratio():
    spec = Preprocessing((60, 100), crop_ratio=1.0, interpolation="bilinear", fit="pad")
    prepare = Preprocessor(spec, "uint8")
    picture = noise(80, 60)
    found = prepare(picture)
    assert found.shape == (3, 60, 100)
    np.testing.assert_array_equal(found[:, :, :80], np.asarray(picture).transpose(2, 0, 1))
    assert found[:, 0, 90].tolist() == [124, 116, 104]
    assert np.abs(Preprocessor(spec)(picture)[:, :, 80:]).max() < 0.01


@pytest.mark.parametrize("size", [(500, 300), (300, 500), (1, 900), (900, 1), (40, 31)])
def test_a_padded_picture_is_resized_by_one_factor(size):
    width, height = size
    prepare = Preprocessor(Preprocessing((64, 96), 1.0, "bilinear", fit="pad"), "uint8")
    filled = prepare.filled(width, height)
    scale = min(64 / height, 96 / width)
    assert filled == (max(1, round(height * scale)), max(1, round(width * scale)))
    picture = noise(width, height)
    resized = picture.resize(filled[::-1], Image.Resampling.BILINEAR)
    found = prepare(picture)[:, : filled[0], : filled[1]].transpose(1, 2, 0)
    assert np.abs(found.astype(int) - np.asarray(resized).astype(int)).max() <= 2


def test_a_large_padded_picture_is_reduced_first():
    spec = Preprocessing((64, 96), 1.0, "bilinear", fit="pad")
    picture = noise(48, 32).resize((960, 640), Image.Resampling.BICUBIC)
    exact, fast = (Preprocessor(spec, "uint8", decode)(picture) for decode in ("exact", "fast"))
    assert np.abs(exact.astype(int) - fast.astype(int)).max() < 24
    assert np.abs(exact.astype(int) - fast.astype(int)).mean() < 2
