from __future__ import annotations

import dataclasses
import io
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

import sacvit_deploy
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.visualize.canvas import viridis
from sacvit_deploy.visualize.token_map import token_map
from tests.visualize.token_fakes import (
    COLUMNS,
    GREY,
    ROWS,
    fake_pipeline,
    grey_picture,
    noise_picture,
)

SVG = "{http://www.w3.org/2000/svg}"
TARGET, WHITE, BLACK = (245, 158, 11), (255, 255, 255), (0, 0, 0)


class Surface:
    """A canvas that remembers what was put on it."""

    def __init__(self) -> None:
        self.fills: list = []
        self.lines: list = []
        self.pictures: list = []
        self.texts: list = []

    def fill(self, box, ink):
        self.fills.append((box, ink))

    def line(self, points, colour, width):
        self.lines.append((points, colour))

    def picture(self, box, image):
        self.pictures.append(box)

    def text(self, at, text, style):
        self.texts.append((at, text, style))

    def words(self) -> str:
        return "\n".join(text for _, text, _ in self.texts)


def drawn(made) -> Surface:
    surface = Surface()
    made.sheet.draw(surface)
    return surface


def index_of(box, tile) -> int:
    """The coarse token a box inside a tile is."""
    row = round((box[1] - tile[1]) / (tile[3] - tile[1]) * ROWS)
    column = round((box[0] - tile[0]) / (tile[2] - tile[0]) * COLUMNS)
    return int(row * COLUMNS + column)


def test_it_is_public():
    assert sacvit_deploy.token_map is token_map


def test_targets_stay_bright_and_the_others_are_shaded():
    made = token_map(fake_pipeline(), grey_picture(), scores=False)
    targets = made.looks[0].result.target_tokens
    assert targets
    surface = drawn(made)
    seen, tokens = surface.pictures
    pixels = np.asarray(made.image(scale=2)).astype(int)
    step = (tokens[2] - tokens[0]) / COLUMNS
    for tile, shaded in ((seen, set()), (tokens, set(range(ROWS * COLUMNS)) - set(targets))):
        for index in range(ROWS * COLUMNS):
            row, column = divmod(index, COLUMNS)
            x, y = tile[0] + (column + 0.5) * step, tile[1] + (row + 0.5) * step
            bright = pixels[round(2 * y), round(2 * x), 0]
            assert (bright < GREY - 60) == (index in shaded), index


def test_the_border_goes_around_the_targets():
    """An edge wherever a target has no target beside it, and nowhere else."""
    made = token_map(fake_pipeline(), noise_picture(), scores=False)
    inside = np.zeros((ROWS + 2, COLUMNS + 2), bool)
    for index in made.looks[0].result.target_tokens or ():
        inside[1 + index // COLUMNS, 1 + index % COLUMNS] = True
    wanted = sum(int(np.diff(inside.astype(int), axis=axis).astype(bool).sum()) for axis in (0, 1))
    edges = [points for points, colour in drawn(made).lines[1:] if colour == TARGET]
    assert len(edges) == wanted > 0


@pytest.mark.parametrize("selection", ["host", "graph"])
def test_a_score_is_a_colour_of_the_scale(selection):
    made = token_map(fake_pipeline(selection=selection), noise_picture())
    score = made.looks[0].score
    surface = drawn(made)
    left = surface.pictures[1][2] + 10
    top, bottom = surface.pictures[1][1], surface.pictures[1][3]
    tile = (left, top, left + 200, bottom)
    cells = [
        (index_of(box, tile), ink.colour)
        for box, ink in surface.fills
        if box[0] >= left - 1e-6 and box[2] <= left + 200 + 1e-6
        if ink.opacity == 1 and top - 1e-6 <= box[1] and box[3] <= bottom + 1e-6
    ]
    span = score.max() - score.min()
    assert dict(cells) == {
        index: viridis(float((value - score.min()) / span)) for index, value in enumerate(score)
    }
    for value in (score.min(), score.max()):
        assert f"{value:#.2g}" in surface.words()
    assert "no unit" in surface.words()


def test_equal_scores_are_drawn_too():
    made = token_map(fake_pipeline(), grey_picture())
    look = dataclasses.replace(made.looks[0], score=np.full(ROWS * COLUMNS, 0.25, np.float32))
    same = dataclasses.replace(made, sheet=dataclasses.replace(made.sheet, looks=(look,)))
    assert viridis(0.5) in {ink.colour for _, ink in drawn(same).fills}


def test_both_stages_are_in_words():
    made = token_map(fake_pipeline(eta=1), noise_picture())
    (look,) = made.looks
    words = drawn(made).words()
    early, late = look.result.early_exit_probability, look.result.probability
    assert f"early exit: {look.early_label}, {early:.1%} sure (threshold 100.0%)" in words
    assert f"second stage: {look.result.label}, {late:.1%} sure, looked again at 6 of 12" in words
    assert "SAC-ViT, 32 x 24 pixels" in words
    assert "tokens looked at again" in words


def test_a_picture_that_left_early_has_neither_shade_nor_border():
    made = token_map(fake_pipeline(), noise_picture(), eta=0)
    surface = drawn(made)
    # The one that remains is the swatch of the legend.
    assert sum(colour == TARGET for _, colour in surface.lines) == 1
    assert sum(ink.opacity == 0.62 for _, ink in surface.fills) == 1
    assert "left at the early exit" in surface.words()
    assert "none looked at again" in surface.words()


@pytest.mark.parametrize("scores", [True, False])
@pytest.mark.parametrize(("count", "columns"), [(1, None), (3, None), (5, 3), (4, 1)])
def test_everything_is_on_the_sheet_and_nothing_overlaps(scores, count, columns):
    pictures = [noise_picture(seed) for seed in range(count)]
    made = token_map(fake_pipeline(), pictures, scores=scores, columns=columns)
    width, height = made.sheet.size
    surface = drawn(made)
    assert len(surface.pictures) == 2 * count
    boxes = surface.pictures + [box for box, _ in surface.fills]
    assert min(box[0] for box in boxes) > 0
    assert max(box[2] for box in boxes) < width
    assert max(box[3] for box in boxes) < height
    assert max(at[1] + style.size for at, _, style in surface.texts) < height
    for one in surface.pictures:
        for other in surface.pictures:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1]
            assert one is other or apart or other[3] <= one[1]
    tops = sorted({box[1] for box in surface.pictures})
    assert len(tops) == -(-count // min(columns or (2 if scores else 3), count))


def test_the_colours_reach_no_neighbour_when_a_name_is_long():
    pipeline = fake_pipeline()
    labels = tuple(f"a very long class name of a very rare animal {i} " * 5 for i in range(7))
    pipeline.manifest = dataclasses.replace(pipeline.manifest, labels=labels)
    made = token_map(pipeline, [noise_picture(0), noise_picture(1)], scores=False)
    surface = drawn(made)
    assert all("…" in text for _, text, _ in surface.texts if "rare animal" in text)
    pixels = np.asarray(made.image(1))
    below = round(surface.pictures[0][3]) + 4
    gap = pixels[below : made.sheet.size[1] - 20, 432:464]
    assert (gap == 255).all()


def test_a_note_is_on_the_sheet():
    assert (
        "random weights"
        in drawn(token_map(fake_pipeline(), noise_picture(), note="random weights")).words()
    )


def test_a_notebook_gets_both_forms():
    made = token_map(fake_pipeline(), noise_picture())
    with Image.open(io.BytesIO(made._repr_png_())) as image:
        assert image.size == made.sheet.size
    assert made._repr_svg_() == made.svg()


@pytest.mark.parametrize("name", ["tokens.png", "TOKENS.PNG", "tokens.svg"])
def test_it_is_saved_by_its_ending(tmp_path, name):
    made = token_map(fake_pipeline(), noise_picture())
    made.save(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    if name.endswith("svg"):
        root = ET.fromstring((tmp_path / name).read_bytes())
        width, height = made.sheet.size
        assert (root.get("width"), root.get("height")) == (str(width), str(height))
        assert len(list(root.iter(f"{SVG}image"))) == 1
        words = {text.text for text in root.iter(f"{SVG}text")}
        assert "score of each token" in words
    else:
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            assert image.size == tuple(2 * side for side in made.sheet.size)


@pytest.mark.parametrize("name", ["tokens.pdf", "tokens", "none/tokens.png", "folder.png"])
def test_a_file_that_cannot_be_written_is_refused(tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    made = token_map(fake_pipeline(), noise_picture())
    with pytest.raises(ConfigError):
        made.save(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize("wrong", [{"columns": 0}, {"eta": 2}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        token_map(fake_pipeline(), noise_picture(), **wrong)
