from __future__ import annotations

import base64
import io
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.visualize.canvas import (
    ROLES,
    Drawing,
    Ink,
    Pen,
    PixelCanvas,
    Type,
    VectorCanvas,
    check_drawing_file,
    fitted,
    text_width,
    viridis,
    wrapped,
)

SVG = "{http://www.w3.org/2000/svg}"
WHITE, RED = (255, 255, 255), (255, 0, 0)


class Square(Drawing):
    title = "a square"
    size = (8, 6)

    def draw(self, canvas):
        canvas.fill((2, 1, 5, 4), Ink(RED))


def svg(canvas: VectorCanvas) -> ET.Element:
    return ET.fromstring(canvas.svg())


@pytest.mark.parametrize(
    ("value", "published"),
    [
        (0.0, (68, 1, 84)),
        (0.25, (59, 82, 139)),
        (0.5, (33, 145, 140)),
        (0.75, (94, 201, 98)),
        (1.0, (253, 231, 37)),
    ],
)
def test_the_colours_are_those_of_viridis(value, published):
    assert np.abs(np.subtract(viridis(value), published)).max() <= 4


def test_lightness_only_grows():
    weights = np.array([0.2126, 0.7152, 0.0722])
    light = [float(weights @ viridis(step / 100)) for step in range(101)]
    assert (np.diff(light) > 0).all()


def test_values_outside_are_clipped():
    assert viridis(-1) == viridis(0)
    assert viridis(9) == viridis(1)


@pytest.mark.parametrize("scale", [1, 3])
def test_a_rectangle_covers_its_pixels_and_no_other(scale):
    canvas = PixelCanvas((8, 6), scale)
    canvas.fill((2, 1, 5, 4), Ink(RED))
    red = (np.asarray(canvas.image) == RED).all(axis=2)
    wanted = np.zeros_like(red)
    wanted[scale : 4 * scale, 2 * scale : 5 * scale] = True
    np.testing.assert_array_equal(red, wanted)


def test_what_is_not_opaque_lets_the_paper_through():
    canvas = PixelCanvas((4, 4), 1)
    canvas.fill((0, 0, 4, 4), Ink((0, 0, 0), 0.5))
    pixel = canvas.image.getpixel((1, 1))
    assert isinstance(pixel, tuple)
    assert pixel[0] == pytest.approx(127, abs=1)


def test_lines_meet_in_their_corner():
    canvas = PixelCanvas((20, 20), 1)
    canvas.line(((4, 16), (4, 4), (16, 4)), Pen(RED, 4))
    assert canvas.image.getpixel((2, 2)) == RED
    assert canvas.image.getpixel((17, 2)) == RED
    assert canvas.image.getpixel((8, 8)) == WHITE


def red(canvas: PixelCanvas) -> np.ndarray:
    """Share of red in every pixel, on white."""
    return 1 - np.asarray(canvas.image)[..., 1] / 255


def test_a_sloping_line_is_smooth_and_as_wide_as_asked():
    canvas = PixelCanvas((40, 40), 1)
    canvas.line(((5, 10), (35, 25)), Pen(RED, 4))
    share = red(canvas)
    assert share.sum() == pytest.approx(4 * np.hypot(30, 15), rel=0.05)
    assert ((share > 0.1) & (share < 0.9)).sum() > 20
    assert share[17, 20] == 1
    assert share[:6].sum() == share[30:].sum() == 0


def test_a_dashed_line_has_gaps():
    canvas = PixelCanvas((40, 10), 2)
    canvas.line(((2, 5), (38, 5)), Pen(RED, 2, dashed=True))
    row = red(canvas)[10] > 0.5
    assert np.flatnonzero(np.diff(row.astype(int)) == 1).size == 4
    assert row.mean() == pytest.approx(36 * 5 / 9 / 40, abs=0.05)


@pytest.mark.parametrize("opacity", [1, 0.5])
def test_a_polygon_and_a_circle_cover_their_area(opacity):
    canvas = PixelCanvas((40, 40), 2)
    canvas.area(((5, 5), (35, 5), (5, 35)), Ink(RED, opacity))
    assert red(canvas).sum() == pytest.approx(4 * 450 * opacity, rel=0.02)
    canvas = PixelCanvas((40, 40), 2)
    canvas.dot((20, 20), 10, Ink(RED, opacity))
    share = red(canvas)
    assert share.sum() == pytest.approx(4 * np.pi * 100 * opacity, rel=0.02)
    middle = (np.indices(share.shape) * share).sum(axis=(1, 2)) / share.sum()
    np.testing.assert_allclose(middle, 39.5, atol=0.2)


@pytest.mark.parametrize(("anchor", "share"), [("start", 0), ("middle", 0.5), ("end", 1)])
def test_a_text_lies_where_its_anchor_says(anchor, share):
    wide = text_width("mmm", 12)
    canvas = PixelCanvas((100, 100), 1)
    canvas.text((50, 40), "mmm", Type(12, RED, anchor))
    upright = np.argwhere(red(canvas) > 0.5)
    begin = 50 - wide * share
    assert upright[:, 1].min() == pytest.approx(begin, abs=2)
    assert upright[:, 1].max() == pytest.approx(begin + wide, abs=3)
    assert 40 <= upright[:, 0].min() < upright[:, 0].max() < 40 + 12
    canvas = PixelCanvas((100, 100), 1)
    canvas.text((40, 50), "mmm", Type(12, RED, anchor, turned=True))
    turned = np.argwhere(red(canvas) > 0.5)
    np.testing.assert_array_equal(np.sort(100 - turned[:, 0]), np.sort(upright[:, 1] + 1))
    np.testing.assert_array_equal(np.sort(turned[:, 1]), np.sort(upright[:, 0]))


def test_a_halo_sets_a_text_off():
    canvas = PixelCanvas((60, 30), 2)
    canvas.fill((0, 0, 60, 30), Ink(RED))
    canvas.text((10, 5), "mm", Type(16, "ink", halo=True))
    pixels = np.asarray(canvas.image).reshape(-1, 3)
    assert (pixels == 255).all(axis=1).sum() > 50
    assert (pixels == (27, 27, 31)).all(axis=1).sum() > 50


def test_a_picture_is_fitted_to_its_rectangle():
    canvas = PixelCanvas((10, 10), 2)
    canvas.picture((1, 1, 9, 5), Image.new("RGB", (3, 3), RED))
    assert canvas.image.getpixel((2, 2)) == RED
    assert canvas.image.getpixel((17, 9)) == RED
    assert canvas.image.getpixel((17, 10)) == WHITE


def test_vectors_and_texts_stay_what_they_are():
    canvas = VectorCanvas((30, 20), "A & B")
    canvas.fill((1, 2, 4, 8), Ink(RED, 0.5))
    canvas.line(((0, 0), (9, 0)), Pen(RED, 2))
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


def test_shapes_of_charts_are_vectors_too():
    canvas = VectorCanvas((30, 20), "")
    canvas.area(((0, 0), (9, 0), (0, 9)), Ink("early", 0.5))
    canvas.dot((4, 5), 2, Ink("late"), "here & there")
    canvas.line(((0, 0), (9, 4)), Pen(RED, 2, dashed=True))
    canvas.text((3, 9), "up", Type(10, "ink", "middle", turned=True, halo=True))
    root = svg(canvas)
    (area,) = root.iter(f"{SVG}polygon")
    assert (area.get("points"), area.get("fill")) == ("0,0 9,0 0,9", ROLES["early"][0])
    (dot,) = root.iter(f"{SVG}circle")
    assert (dot.get("cx"), dot.get("cy"), dot.get("r")) == ("4", "5", "2")
    assert dot.findtext(f"{SVG}title") == "here & there"
    (line,) = root.iter(f"{SVG}polyline")
    assert line.get("stroke-dasharray")
    (text,) = root.iter(f"{SVG}text")
    assert text.get("text-anchor") == "middle"
    assert text.get("transform") == "translate(12.5 9) rotate(-90)"
    assert text.get("paint-order") == "stroke"


def test_inside_a_page_a_role_is_a_variable():
    canvas = VectorCanvas((30, 20), "A & B", inline=True)
    canvas.dot((4, 5), 2, Ink("late"))
    canvas.fill((0, 0, 1, 1), Ink(RED))
    root = ET.fromstring(canvas.svg())
    assert root.get("aria-label") == "A & B"
    assert [part.get("fill") for part in root] == ["var(--late)", "#ff0000"]
    assert "http" not in canvas.svg()


def test_control_characters_do_not_break_the_document():
    canvas = VectorCanvas((30, 20), "title\x00")
    canvas.text((1, 1), "tab\tbell\x07end", Type(12, RED))
    (text,) = svg(canvas).iter(f"{SVG}text")
    assert text.text == "tab bell end"


def test_a_picture_is_embedded_once():
    canvas = VectorCanvas((30, 20), "")
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


@pytest.mark.parametrize("name", ["square.png", "SQUARE.PNG", "square.svg"])
def test_a_drawing_is_saved_by_its_ending(tmp_path, name):
    Square().save(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    if name.endswith("svg"):
        root = ET.fromstring((tmp_path / name).read_bytes())
        assert (root.get("width"), root.findtext(f"{SVG}title")) == ("8", "a square")
    else:
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.size) == ("PNG", (16, 12))


def test_a_notebook_gets_both_forms():
    with Image.open(io.BytesIO(Square()._repr_png_())) as image:
        assert (image.format, image.size) == ("PNG", Square.size)
    assert Square()._repr_svg_() == Square().svg()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, r"\.png or \.svg") for name in ("s.pdf", "s", "s.jpg")),
        *((name, "cannot be written") for name in ("none/s.png", "/proc/s.svg")),
        ("folder.png", "is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, name, reason):
    (tmp_path / "folder.png").mkdir()
    for attempt in (check_drawing_file, Square().save):
        with pytest.raises(ConfigError, match=reason):
            attempt(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.png"]


def test_the_check_leaves_nothing_and_changes_nothing(tmp_path):
    check_drawing_file(tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.svg").write_text("old")
    check_drawing_file(tmp_path / "old.svg")
    assert (tmp_path / "old.svg").read_text() == "old"
