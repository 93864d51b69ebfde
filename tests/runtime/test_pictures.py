"""Every kind of picture becomes upright RGB; every bad one is one clear error."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from sacvit_deploy.errors import ImageError
from sacvit_deploy.runtime.pictures import FORMATS, MAX_PIXELS, name_of, read_picture
from sacvit_deploy.samples import Sample, sample_pictures

ORIENTATION = 0x0112


@pytest.fixture
def rgb():
    """A smooth 6x4 picture whose corners all differ."""
    rows, columns = np.mgrid[0:4, 0:6]
    array = np.stack([40 * columns, 60 * rows, 250 - 30 * columns - 20 * rows], axis=-1)
    return Image.fromarray(array.astype(np.uint8))


def pixels(source):
    picture = read_picture(source)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def png(width, height):
    """A PNG that announces a size and holds almost no data."""

    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.webp", "a.jp2"])
def test_a_file_a_pil_picture_and_an_array_are_the_same(tmp_path, rgb, name):
    path = tmp_path / name
    rgb.save(path, **({"lossless": True} if name == "a.webp" else {}))
    expected = np.asarray(rgb).astype(int)
    with Image.open(path) as lazy:
        for source in (path, str(path), lazy, rgb, np.asarray(rgb)):
            np.testing.assert_array_equal(pixels(source), expected)


def test_bytes_and_open_files_are_pictures(tmp_path, rgb):
    file = tmp_path / "a.png"
    rgb.save(file)
    content = file.read_bytes()
    wanted = pixels(rgb)
    np.testing.assert_array_equal(pixels(content), wanted)
    with file.open("rb") as stream:
        np.testing.assert_array_equal(pixels(stream), wanted)
        assert not stream.closed
        assert name_of(stream) == str(file)
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        np.testing.assert_array_equal(pixels(pipe), wanted)
        assert name_of(pipe) is None


def test_bytes_and_open_files_that_are_no_pictures(tmp_path):
    with pytest.raises(ImageError, match="picture of 4 bytes is not a picture that can be read"):
        read_picture(b"text")
    with pytest.raises(ImageError, match="empty file"):
        read_picture(b"")
    (tmp_path / "a.txt").write_text("text")
    with (
        (tmp_path / "a.txt").open() as stream,
        pytest.raises(ImageError, match=r"a\.txt was opened for text\.\nOpen it for bytes"),
    ):
        read_picture(stream)


@pytest.mark.parametrize("mode", ["RGBA", "RGBX", "RGBa", "HSV", "YCbCr", "CMYK"])
def test_colour_modes_keep_the_colours(rgb, mode):
    picture = rgb.convert("RGBA").convert(mode) if mode == "RGBa" else rgb.convert(mode)
    assert np.abs(pixels(picture) - np.asarray(rgb)).max() <= 8


@pytest.mark.parametrize("mode", ["L", "LA", "La", "1", "I", "F", "PA", "P"])
def test_grey_modes_keep_the_greys(mode):
    grey = Image.fromarray(np.array([[0, 255, 255], [255, 0, 255]], np.uint8))
    picture = grey.convert("LA").convert("La") if mode == "La" else grey.convert(mode)
    expected = np.repeat(np.asarray(grey)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(pixels(picture), expected)


def test_inverted_cmyk_jpeg(tmp_path, rgb):
    path = tmp_path / "a.jpg"
    # Pillow writes CMYK the way Adobe does: inverted, with the marker that says so.
    rgb.convert("CMYK").resize((48, 32)).save(path, quality=100)
    assert b"Adobe" in path.read_bytes()
    assert np.abs(pixels(path) - np.asarray(rgb.resize((48, 32)))).max() <= 16


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_16_bit_grey_is_scaled_not_clipped(mode):
    dtype = ">u2" if mode == "I;16B" else "<u2"
    values = np.array([[0, 128, 129, 257, 32896, 65406, 65407, 65535]], dtype)
    picture = Image.frombytes(mode, (8, 1), values.tobytes())
    assert pixels(picture)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255, 255]


def test_16_bit_png(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 25700, 65535]], np.uint16)).save(path)
    assert pixels(path)[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 99.6, 255]], np.float32), [0, 100, 255]),
    ],
)
def test_32_bit_grey_finds_its_white(values, expected):
    assert pixels(Image.fromarray(values))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("value", [-1, 70000, float("nan"), float("inf")])
def test_32_bit_grey_without_a_known_white_is_refused(value):
    with pytest.raises(ImageError, match="32-bit grey"):
        read_picture(Image.fromarray(np.array([[0, value]], np.float32)))


def test_transparent_pixels_are_white_and_opaque_ones_unchanged():
    hidden_black = Image.fromarray(np.array([[[0, 0, 0, 0], [9, 8, 7, 255]]], np.uint8))
    assert pixels(hidden_black).tolist() == [[[255, 255, 255], [9, 8, 7]]]
    half = Image.fromarray(np.array([[[0, 0, 0, 128]]], np.uint8))
    assert pixels(half).tolist() == [[[127, 127, 127]]]


@pytest.mark.parametrize("transparency", [0, b"\0\xff"])
def test_transparent_palette_entry_is_white(tmp_path, transparency):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png", transparency=transparency)
    assert pixels(tmp_path / "a.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize(("mode", "key"), [("L", 0), ("RGB", (0, 0, 0))])
def test_transparent_colour_key_is_white(tmp_path, mode, key):
    picture = Image.new(mode, (2, 1))
    picture.putpixel((1, 0), 77 if mode == "L" else (77, 77, 77))
    picture.save(tmp_path / "a.png", transparency=key)
    assert pixels(tmp_path / "a.png").tolist() == [[[255] * 3, [77] * 3]]


def test_gif_gives_its_first_frame(tmp_path):
    red, blue = Image.new("RGB", (3, 2), "red"), Image.new("RGB", (3, 2), "blue")
    red.save(tmp_path / "a.gif", save_all=True, append_images=[blue])
    assert pixels(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, rgb, name, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = rgb.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else rgb
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / name
    stored.save(path, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    with Image.open(path) as lazy:
        for source in (path, lazy):
            once = read_picture(source)
            np.testing.assert_array_equal(np.asarray(once), np.asarray(rgb))
            np.testing.assert_array_equal(pixels(once), np.asarray(rgb))


def test_damaged_exif_leaves_the_picture_alone(tmp_path, rgb):
    rgb.save(tmp_path / "a.png", exif=b"Exif\0\0garbage")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.asarray(rgb))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30, 0.5])
def test_an_orientation_that_is_no_orientation_is_ignored(tmp_path, rgb, value):
    entry = struct.pack("<HHIf", ORIENTATION, 11, 1, value)
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + b"\0" * 4
    rgb.save(tmp_path / "a.png", exif=block)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.asarray(rgb))


@pytest.mark.parametrize("mode", [
    "RGBA", "RGBX", "RGBa", "HSV", "YCbCr", "CMYK", "L", "LA", "La", "1", "I", "F", "PA", "P",
    "I;16", "I;16B", "I;16L",
])  # fmt: skip
def test_strips_give_what_the_whole_gives(monkeypatch, rgb, mode):
    if mode.startswith("I;16"):
        picture = Image.frombytes(mode, rgb.size, rgb.convert("LA").tobytes())
    else:
        by_way_of = {"RGBa": "RGBA", "La": "LA"}.get(mode, "RGB" if mode in "HSV YCbCr" else "L")
        picture = rgb.convert(by_way_of).convert(mode)
    whole = pixels(picture)
    monkeypatch.setattr("sacvit_deploy.runtime.pictures._STRIP_PIXELS", 13)
    np.testing.assert_array_equal(pixels(picture), whole)


_PEAK = """
import sys
from pathlib import Path
from sacvit_deploy.runtime.pictures import read_picture

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

before = peak()
print(read_picture(sys.argv[1]).width, (peak() - before) // 4000**2)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's own counts")
def test_a_picture_with_alpha_takes_no_more_than_it_and_its_rgb(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGBA", (4000, 4000)).save(file, compress_level=1)
    run = subprocess.run(
        [sys.executable, "-c", _PEAK, str(file)], capture_output=True, text=True, check=True
    )
    width, bytes_per_pixel = map(int, run.stdout.split())
    assert (width, bytes_per_pixel) <= (4000, 4 + 4 + 5)


def test_the_callers_picture_is_not_changed(rgb):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    rgb.info["exif"] = exif.tobytes()
    before = rgb.tobytes()
    assert read_picture(rgb).size == (4, 6)
    assert rgb.size == (6, 4)
    assert rgb.tobytes() == before
    assert "exif" in rgb.info


def _bad_files(folder):
    jpeg = folder / "whole.jpg"
    Image.effect_noise((200, 200), 80).convert("RGB").save(jpeg)
    data = jpeg.read_bytes()
    return {
        "text.jpg": (b"this is not a picture", "not a picture"),
        "vector.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        "empty.jpg": (b"", "empty file"),
        "half.jpg": (data[: len(data) // 2], "cannot be decoded"),
        "header.jpg": (data[:100], "cannot be decoded"),
        "start.jpg": (data[:4], "cannot be decoded"),
        "half.png": (png(50, 50), "cannot be decoded"),
        "none.png": (png(0, 5), "no pixels|cannot be decoded"),
        "long.png": (png(1, 2_000_000), "1x2000000 = .* 1,000,000 on a side"),
        "bomb.png": (png(30_000, 30_000), "30000x30000 = 900,000,000 pixels"),
    }


@pytest.mark.parametrize("name", [
    "text.jpg", "vector.eps", "empty.jpg", "half.jpg", "header.jpg", "start.jpg", "half.png",
    "none.png", "long.png", "bomb.png",
])  # fmt: skip
def test_bad_file_is_one_error_that_names_it(tmp_path, name):
    data, problem = _bad_files(tmp_path)[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError, match=problem) as caught:
        read_picture(tmp_path / name)
    assert name in caught.value.problem
    assert caught.value.fix


def test_missing_folder_and_impossible_paths(tmp_path):
    for path, problem in [
        (tmp_path / "absent.jpg", "does not exist"),
        (tmp_path, "is a folder"),
        ("nul\0.jpg", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
    ]:
        with pytest.raises(ImageError, match=problem):
            read_picture(path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_pipes_and_devices_are_refused_and_never_waited_for(tmp_path):
    pipe, null = tmp_path / "pipe.jpg", tmp_path / "null.jpg"
    os.mkfifo(pipe)
    null.symlink_to(os.devnull)
    writer = os.open(pipe, os.O_RDWR)  # there is something to read, should a reader come
    os.write(writer, b"x" * 64)
    for source in (pipe, null, Sample(str(pipe), "cat")):
        with pytest.raises(ImageError, match=r"cannot be opened: it is not a regular file\."):
            read_picture(source)
    os.close(writer)


def test_permission_denied(tmp_path, monkeypatch):
    path = tmp_path / "secret.jpg"
    path.write_bytes(b"x")

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied", str(path))

    # Root may read everything, so the refusal is played.
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ImageError, match=r"secret.jpg' cannot be opened: Permission denied"):
        read_picture(path)


@pytest.mark.parametrize("side", [9_600, 13_377])
def test_the_limit_is_ours_and_silent_below(tmp_path, side):
    """Pillow would warn from 89 million pixels on, and warnings are errors here."""
    assert Image.MAX_IMAGE_PIXELS < side * side < MAX_PIXELS
    (tmp_path / "large.png").write_bytes(png(side, side))
    # The header passes; what fails is the pixel data, which is not there.
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_picture(tmp_path / "large.png")


def test_pillows_settings_are_left_alone(tmp_path, rgb):
    def settings():
        return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES

    before = settings()
    rgb.save(tmp_path / "a.png")
    read_picture(tmp_path / "a.png")
    assert settings() == before


@pytest.mark.parametrize(
    ("array", "fix"),
    [
        (np.zeros((4, 5), np.uint8), "Repeat the grey channel"),
        (np.zeros((4, 5, 3), np.float32), "0 to 1"),
        (np.zeros((4, 5, 3), np.uint16), "0 to 255"),
        (np.zeros((3, 4, 5), np.uint8), "transpose"),
        (np.zeros((4, 5, 4), np.uint8), "alpha"),
        (np.zeros((2, 4, 5, 3), np.uint8), "list of arrays"),
        (np.zeros(5, np.uint8), "one picture"),
        (np.zeros((0, 5, 3), np.uint8), "Pass a picture"),
    ],
)
def test_wrong_array_says_what_it_is_and_what_to_do(array, fix):
    with pytest.raises(ImageError) as caught:
        read_picture(array)
    assert str(array.dtype) in caught.value.problem
    assert str(array.shape) in caught.value.problem
    assert fix in caught.value.fix


def test_views_of_arrays_are_read_as_they_look(rgb):
    array = np.asarray(rgb)
    np.testing.assert_array_equal(pixels(array[::-1, ::2, ::-1]), array[::-1, ::2, ::-1])


@pytest.mark.parametrize("source", [None, 3, [np.zeros((2, 2, 3), np.uint8)], b"a.jpg"])
def test_other_types_are_refused(source):
    with pytest.raises(ImageError, match=type(source).__name__):
        read_picture(source)


def test_a_generator_of_frames_is_sent_to_stream():
    frames: Any = (np.zeros((4, 6, 3), np.uint8) for _ in range(2))
    with pytest.raises(ImageError, match=r"generator found\.\nPass .* to stream"):
        read_picture(frames)


def test_empty_closed_and_unsupported_pil_pictures(tmp_path, rgb):
    rgb.save(tmp_path / "a.png")
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    for picture, problem in [
        (Image.new("RGB", (0, 5)), "no pixels"),
        (Image.new("LAB", (2, 2)), "mode LAB"),
        (closed, "cannot be decoded"),
    ]:
        with pytest.raises(ImageError, match=problem):
            read_picture(picture)


def test_threads_read_what_one_thread_reads():
    paths = [path for path in sample_pictures() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(read_picture, paths))
    for path, result in zip(paths, results, strict=True):
        assert result.tobytes() == read_picture(path).tobytes()


def test_formats_are_names_pillow_knows():
    Image.init()
    assert set(FORMATS) - set(Image.OPEN) <= {"AVIF"}


def test_names_are_the_paths_as_given(tmp_path, rgb):
    assert name_of("a/b.png") == "a/b.png"
    assert name_of(tmp_path / "c.png") == str(tmp_path / "c.png")
    assert name_of(Sample("val/cat/1.jpg", "cat")) == "val/cat/1.jpg"
    assert name_of(rgb) is None
    assert name_of(np.asarray(rgb)) is None
