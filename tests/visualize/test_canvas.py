from __future__ import annotations

import base64
import io
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from sacvit_deploy.visualize.canvas import (
    Ink,
    PixelCanvas,
    Type,
    VectorCanvas,
    fitted,
    text_width,
    wrapped,
)

SVG = "{http://www.w3.org/2000/svg}"
WHITE, RED = (255, 255, 255), (255, 0, 0)


def svg(canvas: VectorCanvas) -> ET.Element:
    return ET.fromstring(canvas.svg())


@pytest.mark.parametrize("scale", [1, 3])
def test_a_rectangle_covers_its_pixels_and_no_other(scale):
    canvas = PixelCanvas((8, 6), WHITE, scale)
    canvas.fill((2, 1, 5, 4), Ink(RED))
    red = (np.asarray(canvas.image) == RED).all(axis=2)
    wanted = np.zeros_like(red)
    wanted[scale : 4 * scale, 2 * scale : 5 * scale] = True
    np.testing.assert_array_equal(red, wanted)


def test_what_is_not_opaque_lets_the_paper_through():
    canvas = PixelCanvas((4, 4), WHITE, 1)
    canvas.fill((0, 0, 4, 4), Ink((0, 0, 0), 0.5))
    pixel = canvas.image.getpixel((1, 1))
    assert isinstance(pixel, tuple)
    assert pixel[0] == pytest.approx(127, abs=1)


def test_lines_meet_in_their_corner():
    canvas = PixelCanvas((20, 20), WHITE, 1)
    canvas.line(((4, 16), (4, 4), (16, 4)), RED, 4)
    assert canvas.image.getpixel((2, 2)) == RED
    assert canvas.image.getpixel((17, 2)) == RED
    assert canvas.image.getpixel((8, 8)) == WHITE


def test_a_picture_is_fitted_to_its_rectangle():
    canvas = PixelCanvas((10, 10), WHITE, 2)
    canvas.picture((1, 1, 9, 5), Image.new("RGB", (3, 3), RED))
    assert canvas.image.getpixel((2, 2)) == RED
    assert canvas.image.getpixel((17, 9)) == RED
    assert canvas.image.getpixel((17, 10)) == WHITE


def test_a_png_is_one():
    data = PixelCanvas((4, 3), WHITE, 2).png()
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("PNG", (8, 6))


def test_vectors_and_texts_stay_what_they_are():
    canvas = VectorCanvas((30, 20), WHITE, "A & B")
    canvas.fill((1, 2, 4, 8), Ink(RED, 0.5))
    canvas.line(((0, 0), (9, 0)), RED, 2)
    canvas.text((1, 1), "Käfer <b> & Co.", Type(12, RED))
    canvas.text((1, 1), "", Type(12, RED))
    root = svg(canvas)
    assert root.get("viewBox") == "0 0 30 20"
    assert root.findtext(f"{SVG}title") == "A & B"
    paper, box = root.iter(f"{SVG}rect")
    assert (paper.get("width"), paper.get("fill")) == ("30", "#ffffff")
    assert (box.get("height"), box.get("fill"), box.get("fill-opacity")) == ("6", "#ff0000", "0.5")
    (text,) = root.iter(f"{SVG}text")
    assert text.text == "Käfer <b> & Co."
    assert float(text.get("textLength") or 0) == pytest.approx(text_width(text.text, 12), abs=0.1)
    assert len(list(root.iter(f"{SVG}polyline"))) == 1


def test_control_characters_do_not_break_the_document():
    canvas = VectorCanvas((30, 20), WHITE, "title\x00")
    canvas.text((1, 1), "tab\tbell\x07end", Type(12, RED))
    (text,) = svg(canvas).iter(f"{SVG}text")
    assert text.text == "tab bell end"


def test_a_picture_is_embedded_once():
    canvas = VectorCanvas((30, 20), WHITE, "")
    image = Image.new("RGB", (5, 4), RED)
    canvas.picture((0, 0, 10, 8), image)
    canvas.picture((10, 0, 20, 8), image)
    canvas.picture((20, 0, 30, 8), image.copy())
    root = svg(canvas)
    first, _ = root.iter(f"{SVG}image")
    assert [use.get("href") for use in root.iter(f"{SVG}use")] == [
        "#picture0",
        "#picture0",
        "#picture1",
    ]
    data = (first.get("href") or "").partition("base64,")[2]
    with Image.open(io.BytesIO(base64.b64decode(data))) as embedded:
        assert embedded.size == (5, 4)


def test_texts_are_shortened_and_broken_to_a_width():
    text = "a rather long sentence of many words"
    assert fitted(text, 12, 1000) == text
    short = fitted(text, 12, 80)
    assert short.endswith("…")
    assert text_width(short, 12) <= 80
    lines = wrapped(text, 12, 80)
    assert len(lines) > 1
    assert " ".join(lines) == text
    assert all(text_width(line, 12) <= 80 for line in lines)
    assert wrapped("", 12, 80) == []
    assert wrapped("w" * 99, 12, 80)[0].endswith("…")
