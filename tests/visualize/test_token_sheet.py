from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.runtime.result import Result
from sacvit_deploy.spec import Preprocessing
from sacvit_deploy.visualize.token_sheet import Panel, token_sheet

GRID = (4, 4)
PREPROCESSOR = Preprocessor(Preprocessing((64, 64), crop_ratio=1.0))
GREY = 200
# Where the first panel begins, and the sides of its picture.
LEFT, TOP, SIDE = 16, 56, 320


def result(targets=None, label="cat", stage=None) -> Result:
    stage = stage or ("early_exit" if targets is None else "refine")
    early = None if stage == "single" else 0.4
    return Result("cat.jpg", 0, label, 0.5, stage, early, ((0, label, 0.5),), targets)


def panel(**kinds) -> Panel:
    return Panel(Image.new("RGB", (100, 80), (GREY,) * 3), result(**kinds))


def sheet(*panels: Panel, note: str = "", preprocessor=PREPROCESSOR, grid=GRID) -> Image.Image:
    return token_sheet(panels, preprocessor, grid, note)


def cell_middle(made: Image.Image, index: int) -> int:
    """Brightness in the middle of a coarse token of the first panel."""
    row, column = divmod(index, GRID[1])
    step = SIDE // GRID[0]
    pixel = made.getpixel((LEFT + column * step + step // 2, TOP + row * step + step // 2))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def test_targets_stay_bright_and_the_others_are_shaded():
    targets = (0, 5, 6, 15)
    made = sheet(panel(targets=targets))
    assert made.mode == "RGB"
    bright = [index for index in range(16) if cell_middle(made, index) == GREY]
    assert bright == sorted(targets)
    assert all(cell_middle(made, i) < GREY - 60 for i in range(16) if i not in targets)


def test_a_picture_that_left_early_is_not_shaded():
    made = sheet(panel())
    assert {cell_middle(made, index) for index in range(16)} == {GREY}


def test_targets_are_outlined():
    made = np.asarray(sheet(panel(targets=(5,))))
    step = SIDE // GRID[0]
    corner = made[TOP + step, LEFT + step]
    assert tuple(corner) == (245, 158, 11)


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 4, 1), (5, 4, 2), (9, 4, 3)]
)
def test_four_panels_stand_in_a_row(count, columns, rows):
    one, two = sheet(panel()), sheet(panel(), panel())
    step = two.width - one.width
    made = sheet(*[panel()] * count)
    assert made.width == one.width + (columns - 1) * step
    extra = made.height - one.height
    assert extra % max(rows - 1, 1) == 0
    assert (extra > 0) == (rows > 1)


def test_panels_have_the_shape_of_what_the_network_sees():
    wide = Preprocessor(Preprocessing((32, 64), crop_ratio=1.0))
    square, flat = sheet(panel()), sheet(panel(), preprocessor=wide, grid=(2, 4))
    assert square.height - flat.height == SIDE // 2


def test_only_the_part_that_the_network_sees_is_shown():
    """The left half of a wide picture is black, and only the middle is cropped."""
    picture = np.zeros((50, 300, 3), np.uint8)
    picture[:, 125:175] = GREY
    made = sheet(Panel(picture, result()))
    assert {cell_middle(made, index) for index in range(16)} == {GREY}


def test_every_caption_fits_beside_its_neighbour():
    short, long = "cat", "a very long class name of a very rare animal indeed " * 3
    made = sheet(panel(label=long), panel(label=short))
    gap = np.asarray(made)[TOP + SIDE :, LEFT + SIDE : LEFT + SIDE + 16]
    assert (gap == 255).all()
    assert np.asarray(made)[TOP + SIDE :, : LEFT + SIDE].min() < 100


@pytest.mark.parametrize("kinds", [{"stage": "single"}, {"label": "Käfer"}, {"label": ""}])
def test_captions_of_every_kind_are_drawn(kinds):
    made = np.asarray(sheet(panel(**kinds)))
    assert made[TOP + SIDE :].min() < 150


def test_the_note_is_on_the_sheet():
    plain, noted = (np.asarray(sheet(panel(), note=note)) for note in ("", "random weights"))
    assert (plain[30:TOP] == 255).all()
    assert noted[30:TOP].min() < 200
    np.testing.assert_array_equal(plain[TOP:], noted[TOP:])
