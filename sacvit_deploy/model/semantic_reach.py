"""Which tokens attend to which in STViT-R, as constant tables.

The classifier and the backbone of its authors share their names, but attend to different keys.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.stvit_r import GENERATION_WINDOWS, RECOVERY_WINDOWS, key_side
from sacvit_deploy.families.swin import swin_section
from sacvit_deploy.model.windows import (
    Grid,
    Index,
    Mask,
    hidden_keys,
    in_windows,
    padded,
    places,
    pooling_index,
    square_index,
    window_index,
)


class Reach(NamedTuple):
    """What the queries of each window attend to.

    Attributes:
        windows: Number of windows; the queries of each follow each other.
        keys: Keys of each window, (windows, keys); None for all keys in the only window.
        hidden: Keys that a window does not see, (windows, 1, keys); None if it sees all.
        queries: Queries of each window, (windows, queries), if they come row by row.
        places: Where `queries` holds each of them.
    """

    windows: int = 1
    keys: Index | None = None
    hidden: Mask | None = None
    queries: Index | None = None
    places: Index | None = None


class Reaches(NamedTuple):
    """The reach of each block with semantic tokens in a unit.

    Attributes:
        pooled: Image tokens that each semantic token starts from, (tokens, pooled).
        order: Numbers of the semantic tokens row by row, in the order window by window, (tokens,).
        first: Reach of the semantic tokens in the first block that makes them.
        second: Reach in the second block.
        with_semantic: Whether their keys are `[semantic tokens; image tokens]`, or the latter only.
        local: Reach of the semantic tokens inside their own window.
        recovery: Reach of the image tokens to the semantic tokens.
    """

    pooled: Index
    order: Index
    first: Reach
    second: Reach
    with_semantic: bool
    local: Reach
    recovery: Reach


def reaches_of(config: ModelConfig, grid: Grid) -> Reaches:
    """The reaches in a network whose third stage has image tokens in that grid."""
    section = swin_section(config)
    window, side = section.window, section.semantic_side
    if section.task == "features":
        return _backbone_reaches(grid, window, side)
    return _classifier_reaches(grid, window, side, key_side(config))


def _classifier_reaches(grid: Grid, window: int, side: int, keys: int) -> Reaches:
    """Windows attend to a square of image tokens of side `keys`, and then to all tokens."""
    pooled = pooling_index(grid, window, side)
    image = square_index(grid, window, keys, inside=True)
    order = _order(grid, window, side)
    own = np.arange(len(pooled)).reshape(len(image), -1)
    first = Reach(len(image), np.concatenate([own, len(pooled) + image], axis=1))
    return Reaches(pooled, order, first, Reach(), True, Reach(len(image), own), Reach())


def _backbone_reaches(grid: Grid, window: int, side: int) -> Reaches:
    """Windows attend to squares of image tokens, and of semantic tokens."""
    whole = padded(grid, window)
    pad = whole[0] - grid[0], whole[1] - grid[1]
    pooled, order = pooling_index(grid, window, side), _order(grid, window, side)
    semantic = _semantic_grid(grid, window, side)

    def around(windows: int) -> Reach:
        keys = square_index(grid, window, windows * window)
        hidden = hidden_keys(whole, window, windows * window, pad)
        return Reach(len(keys), keys, _rows(hidden))

    keys = in_windows(semantic, side, square_index(semantic, side, RECOVERY_WINDOWS * side))
    hidden = hidden_keys(semantic, side, RECOVERY_WINDOWS * side, pad)
    queries = window_index(grid, window)
    # What pads the last windows is dropped again, so that any token will do.
    queries = np.where(queries == grid[0] * grid[1], 0, queries)
    recovery = Reach(len(keys), keys, _rows(hidden), queries, places(grid, window))
    local = np.arange(len(pooled)).reshape(len(keys), -1)
    first, second = map(around, GENERATION_WINDOWS)
    return Reaches(pooled, order, first, second, False, Reach(len(keys), local), recovery)


def _semantic_grid(grid: Grid, window: int, side: int) -> Grid:
    rows, columns = padded(grid, window)
    return rows // window * side, columns // window * side


def _order(grid: Grid, window: int, side: int) -> Index:
    return window_index(_semantic_grid(grid, window, side), side).ravel()


def _rows(hidden: Mask) -> Mask | None:
    return hidden[:, None] if hidden.any() else None
