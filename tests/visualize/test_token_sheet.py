from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sacvit_deploy.visualize.canvas import viridis
from sacvit_deploy.visualize.token_map import token_map
from tests.fakes import LF
from tests.visualize.surface import Fill, Line, Surface, Text
from tests.visualize.token_fakes import (
    COLUMNS,
    GREY,
    ROWS,
    fake_pipeline,
    grey_picture,
    noise_picture,
)

TARGET = (245, 158, 11)


def index_of(box, tile) -> int:
    """The coarse token a box inside a tile is."""
    row = round((box[1] - tile[1]) / (tile[3] - tile[1]) * ROWS)
    column = round((box[0] - tile[0]) / (tile[2] - tile[0]) * COLUMNS)
    return int(row * COLUMNS + column)


def test_targets_stay_bright_and_the_others_are_shaded():
    made = token_map(fake_pipeline(), grey_picture(), scores=False)
    targets = made.looks[0].result.target_tokens
    assert targets
    surface = Surface(made)
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
    edges = [line for line in Surface(made).of(Line)[1:] if line.pen.colour == TARGET]
    assert len(edges) == wanted > 0


def test_a_window_has_a_border_and_its_dropped_tokens_a_shade_of_their_own():
    made = token_map(fake_pipeline(LF), noise_picture(), scores=False)
    (look,) = made.looks
    targets = set(look.result.target_tokens or ())
    assert len(look.window) == 4
    assert targets < look.window
    surface = Surface(made)
    tokens = surface.pictures[1]
    shades: dict[int, float] = {}
    for box, ink, _ in surface.of(Fill):
        in_tile = box[0] >= tokens[0] - 1e-6 and box[1] >= tokens[1] - 1e-6
        if in_tile and min(box[2] - box[0], box[3] - box[1]) > 1:  # no line of the grid
            shades[index_of(box, tokens)] = ink.opacity
    outside = set(range(ROWS * COLUMNS)) - look.window
    assert shades == dict.fromkeys(outside, 0.62) | dict.fromkeys(look.window - targets, 0.4)
    window = [line for line in surface.of(Line) if line.pen.dashed and line.pen.colour != TARGET]
    assert len(window) == 1 + 4 * 2  # the swatch, and two tokens on each side
    assert "window with the largest sum" in surface.words()
    early = token_map(fake_pipeline(LF, eta=0), noise_picture())
    assert not early.looks[0].window
    assert "window" not in Surface(early).words()


@pytest.mark.parametrize("selection", ["host", "graph"])
def test_a_score_is_a_colour_of_the_scale(selection):
    made = token_map(fake_pipeline(selection=selection), noise_picture())
    score = made.looks[0].score
    surface = Surface(made)
    left = surface.pictures[1][2] + 10
    top, bottom = surface.pictures[1][1], surface.pictures[1][3]
    tile = (left, top, left + 200, bottom)
    cells = [
        (index_of(box, tile), ink.colour)
        for box, ink, _ in surface.of(Fill)
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
    same = dataclasses.replace(made, looks=(look,))
    assert viridis(0.5) in {fill.ink.colour for fill in Surface(same).of(Fill)}


def test_both_stages_are_in_words():
    made = token_map(fake_pipeline(eta=1), noise_picture())
    (look,) = made.looks
    words = Surface(made).words()
    early, late = look.result.early_exit_probability, look.result.probability
    assert f"early exit: {look.early_label}, {early:.1%} sure (threshold 100.0%)" in words
    assert f"second stage: {look.result.label}, {late:.1%} sure, looked again at 6 of 12" in words
    assert "SAC-ViT, 32 x 24 pixels" in words
    assert "tokens looked at again" in words


def test_a_picture_that_left_early_has_neither_shade_nor_border():
    made = token_map(fake_pipeline(), noise_picture(), eta=0)
    surface = Surface(made)
    # The one that remains is the swatch of the legend.
    assert sum(line.pen.colour == TARGET for line in surface.of(Line)) == 1
    assert sum(fill.ink.opacity == 0.62 for fill in surface.of(Fill)) == 1
    assert "left at the early exit" in surface.words()
    assert "none looked at again" in surface.words()


@pytest.mark.parametrize("scores", [True, False])
@pytest.mark.parametrize(("count", "columns"), [(1, None), (3, None), (5, 3), (4, 1)])
def test_everything_is_on_the_sheet_and_nothing_overlaps(scores, count, columns):
    pictures = [noise_picture(seed) for seed in range(count)]
    made = token_map(fake_pipeline(), pictures, scores=scores, columns=columns)
    width, height = made.size
    surface = Surface(made)
    assert len(surface.pictures) == 2 * count
    boxes = surface.pictures + [fill.box for fill in surface.of(Fill)]
    assert min(box[0] for box in boxes) > 0
    assert max(box[2] for box in boxes) < width
    assert max(box[3] for box in boxes) < height
    assert max(text.at[1] + text.style.size for text in surface.of(Text)) < height
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
    surface = Surface(made)
    assert all("…" in line for line in surface.words().splitlines() if "rare animal" in line)
    pixels = np.asarray(made.image(1))
    below = round(surface.pictures[0][3]) + 4
    gap = pixels[below : made.size[1] - 20, 432:464]
    assert (gap == 255).all()


def test_a_note_is_on_the_sheet():
    made = token_map(fake_pipeline(), noise_picture(), note="random weights")
    assert "random weights" in Surface(made).words()
