"""Hostile pictures: files, EXIF blocks, PIL pictures and arrays."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sacvit_deploy.runtime.pictures import read_picture
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.spec import Preprocessing
from tests.fuzz.strategies import check_refusals, damages, json_values

_PREPROCESS = Preprocessor(Preprocessing((24, 32), crop_ratio=0.875), "float")
_COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
_UPSIDE_DOWN = Image.Exif()
_UPSIDE_DOWN[0x0112] = 3
_PNG_START = b"\x89PNG\r\n\x1a\n"


def _file(form: str, mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    _COLOURS.convert("L" if mode == "I;16" else mode).convert(mode).save(stream, form, **options)
    return stream.getvalue()


_FILES = {
    **{f"PNG {mode}": _file("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")},
    **{f"JPEG {mode}": _file("JPEG", mode) for mode in ("RGB", "L", "CMYK")},
    **{f"TIFF {mode}": _file("TIFF", mode) for mode in ("RGB", "F", "I", "I;16", "CMYK", "LAB")},
    **{f"TIFF {how}": _file("TIFF", compression=how) for how in ("tiff_lzw", "jpeg", "packbits")},
    **{form: _file(form) for form in ("GIF", "BMP", "PPM", "WEBP")},
    "JPEG EXIF": _file("JPEG", exif=_UPSIDE_DOWN),
    "PNG EXIF": _file("PNG", exif=_UPSIDE_DOWN),
    "WEBP EXIF": _file("WEBP", exif=_UPSIDE_DOWN, lossless=True),
    "JPEG progressive": _file("JPEG", progressive=True),
    "BMP P": _file("BMP", "P"),
    "PPM L": _file("PPM", "L"),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    file: Path = tmp_path_factory.mktemp("pictures") / "picture"
    return file


def check(source: Any) -> None:
    def read() -> None:
        picture = read_picture(source)
        assert picture.mode == "RGB"
        assert min(picture.size) > 0
        assert np.isfinite(_PREPROCESS(picture)).all()

    check_refusals(read)


def _with_sums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums that belong to them; nothing else passes these."""
    fixed, at = bytearray(data), len(_PNG_START)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        fixed[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(fixed)


@given(damages(_FILES), st.booleans())
def test_damaged_files(path, damage, sums):
    content = damage.of(_FILES[damage.name])
    path.write_bytes(_with_sums(content) if sums and damage.name.startswith("PNG") else content)
    check(path)


_COUNTS = st.sampled_from([1, 0, 2, 4, 255, 2**16, 2**31 - 1, 2**32 - 1])
_ENTRIES = st.tuples(
    st.sampled_from([0x0112, 0x8769, 0x8825, 0x927C, 0x0100]) | st.integers(0, 2**16 - 1),
    st.integers(0, 19),
    _COUNTS,
    st.sampled_from([8, 0, 1, 6, 26, 2**16, 2**32 - 1]) | st.integers(0, 2**32 - 1),
)
_TAILS = st.binary(max_size=40) | st.sampled_from(
    [struct.pack(f"{order}d", number) * 4 for order in "<>" for number in (float("inf"), 1e300)]
    + [struct.pack(f"{order}f", number) * 8 for order in "<>" for number in (float("inf"), 3e38)]
)


@st.composite
def _exif_blocks(draw: st.DrawFn) -> bytes:
    order = draw(st.sampled_from("<>"))
    entries = draw(st.lists(_ENTRIES, min_size=1, max_size=3))
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    count = struct.pack(f"{order}H", draw(st.just(len(entries)) | st.integers(0, 2**16 - 1)))
    packed = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    return b"Exif\0\0" + start + count + packed + draw(_TAILS)


@given(_exif_blocks() | st.binary(max_size=40), st.sampled_from(["JPEG", "PNG", "WEBP", "none"]))
def test_exif_blocks(path, block, form):
    if form == "none":
        picture = _COLOURS.copy()
        picture.info["exif"] = block
        check(picture)
        return
    path.write_bytes(_file(form, exif=block))
    check(path)


_SIDES = st.sampled_from([0, 1, 2, 7, 300, 20_000])
_INFO = st.sampled_from(["exif", "transparency", "icc_profile", "gamma", "dpi"])


@given(
    st.sampled_from([*Image.MODES, "I;16B", "La", "RGBa", "PA"]),
    st.tuples(_SIDES, st.integers(0, 3)),
    st.booleans(),
    st.dictionaries(_INFO, st.binary(max_size=9) | json_values(), max_size=2),
)
def test_pil_pictures(mode, size, turned, info):
    picture = Image.new(mode, size[::-1] if turned else size)
    picture.info.update(info)
    check(picture)


_DTYPES = ("u1", "i1", "u2", "i8", "f2", "f4", "f8", "c8", "?", "S3", "U3", "M8[s]", "O", "V4")


@given(st.sampled_from(_DTYPES), st.lists(st.integers(0, 5), max_size=5), st.booleans())
def test_arrays(dtype, shape, turned):
    array = np.zeros(shape, dtype)
    check(array.T if turned else array)


_ANNOUNCED = st.sampled_from([1, 0, 2, 13_377, 2**16 - 1, 178_956_970, 2**31 - 1, 2**32 - 1])


@given(_ANNOUNCED, _ANNOUNCED, st.integers(0, 16), st.integers(0, 7), st.integers(0, 2))
def test_announced_sizes(path, width, height, depth, colour, interlaced):
    """A header alone, and the few pixels of another picture after it."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    start = len(_PNG_START) + 8
    content = _FILES["PNG RGB"]
    path.write_bytes(_with_sums(content[:start] + header + content[start + len(header) :]))
    check(path)
