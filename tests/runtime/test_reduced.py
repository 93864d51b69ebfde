"""JPEG files decoded at reduced scale, against the same files decoded whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFilter

from sacvit_deploy.errors import ImageError
from sacvit_deploy.runtime.pictures import read_picture, read_reduced
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.runtime.reduced import Reading
from sacvit_deploy.samples import sample_pictures
from sacvit_deploy.spec import Preprocessing

ORIENTATION = int(ExifTags.Base.Orientation)
SPEC = Preprocessing((32, 32))


def smooth(width, height, seed=0):
    """Colours without fine detail, different in every corner."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    large = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
    return large.filter(ImageFilter.GaussianBlur(min(width, height) / 40))


def save(path, picture, orientation=1, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture.save(path, "JPEG", quality=95, exif=exif, **options)
    return path


def differences(path, spec=SPEC):
    exact, fast = (Preprocessor(spec, "uint8", decode)(path) for decode in ("exact", "fast"))
    return np.abs(exact.astype(int) - fast)


@pytest.mark.parametrize(
    ("size", "scale"),
    [((287, 500), 1), ((500, 143), 1), ((288, 144), 2), ((577, 290), 4), ((1200, 577), 8)],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_scale_is_the_largest_that_keeps_enough(tmp_path, size, scale, turned):
    path = save(tmp_path / "a.jpg", smooth(*size), 6 if turned else 1)
    found = read_reduced(path, (72, 144) if turned else (144, 72))
    assert found.scale == scale
    assert found.size == (size[::-1] if turned else size)
    assert found.picture.size == tuple(-(-side // scale) for side in found.size)


@pytest.mark.parametrize(
    ("orientation", "offset"),
    [
        (1, (0, 0)), (2, (0.25, 0)), (3, (0.25, 0.75)), (4, (0, 0.75)),
        (5, (0, 0)), (6, (0.25, 0)), (7, (0.25, 0.75)), (8, (0, 0.75)),
    ],
)  # fmt: skip
def test_a_turned_picture_begins_with_its_partial_pixel(orientation, offset):
    reading = Reading(Image.new("RGB", (101, 76)), (403, 301), 4, orientation)
    x, y = offset
    assert reading.located((0, 0, 403, 301)) == (x, y, 100.75 + x, 75.25 + y)
    assert reading.located((4, 8, 12, 16)) == (1 + x, 2 + y, 3 + x, 4 + y)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_and_odd_size_looks_the_same(tmp_path, orientation):
    path = save(tmp_path / "a.jpg", smooth(395, 301), orientation)
    assert read_reduced(path, (72, 72)).scale == 4
    found = differences(path)
    assert found.max() <= 2
    assert found.mean() < 0.6


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_other_kinds_of_jpeg(tmp_path, mode, progressive):
    path = save(tmp_path / "a.jpg", smooth(700, 600).convert(mode), progressive=progressive)
    assert read_reduced(path, (72, 72)).scale == 8
    assert differences(path).max() <= 3


def test_a_file_of_several_pictures_gives_its_first(tmp_path):
    path = tmp_path / "a.jpg"
    first, second = smooth(600, 600), smooth(600, 600, seed=1)
    first.save(path, "MPO", save_all=True, append_images=[second], quality=95)
    assert read_reduced(path, (72, 72)).scale == 8
    assert differences(path).max() <= 2


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "BMP"])
def test_other_formats_are_read_whole(tmp_path, form):
    path = tmp_path / "a"
    smooth(300, 300).save(path, form)
    found = read_reduced(path, (16, 16))
    assert found.scale == 1
    assert found.picture.tobytes() == read_picture(path).tobytes()


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_damaged_file_is_one_error(tmp_path, decode):
    whole = io.BytesIO()
    Image.effect_noise((600, 600), 80).convert("RGB").save(whole, "JPEG")
    path = tmp_path / "half.jpg"
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(ImageError, match=r"half\.jpg' cannot be decoded"):
        Preprocessor(SPEC, "uint8", decode)(path)


def test_the_limit_is_that_of_the_whole_picture(tmp_path):
    data = bytearray(save(tmp_path / "a.jpg", smooth(64, 64)).read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"  # height and width
    (tmp_path / "large.jpg").write_bytes(data)
    with pytest.raises(ImageError, match="65535x65535 = 4,294,836,225 pixels"):
        read_reduced(tmp_path / "large.jpg", (8, 8))


def test_the_callers_picture_is_decoded_whole_and_not_changed(tmp_path):
    path = save(tmp_path / "a.jpg", smooth(600, 500))
    with Image.open(path) as lazy:
        Preprocessor(SPEC, "uint8", "fast")(lazy)
        assert lazy.size == (600, 500)


@pytest.mark.parametrize("path", sample_pictures(), ids=lambda path: path.stem)
def test_pictures_below_five_times_the_size_are_the_same(path):
    assert not differences(path, Preprocessing((112, 112))).any()


@pytest.mark.parametrize("path", sample_pictures(), ids=lambda path: path.stem)
def test_photographs_differ_little(path):
    """At 40 pixels they are 7 to 13 times as high as needed."""
    for source in (path, np.asarray(read_picture(path))):
        found = differences(source, Preprocessing((40, 40), 1.0))
        assert 0 < found.max() <= 8
        assert found.mean() < 0.7


@pytest.mark.parametrize("size", [(1000, 800), (801, 1003), (4000, 200), (200, 4001)])
@pytest.mark.parametrize("crop", [(32, 32), (20, 48)])
def test_blocks_of_arrays_are_averaged_in_place(size, crop):
    found = differences(np.asarray(smooth(*size)), Preprocessing(crop))
    assert found.max() <= 2
    assert found.mean() < 0.3
