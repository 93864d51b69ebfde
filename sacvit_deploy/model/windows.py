"""Constant tables of token numbers for attention inside windows, and the keys hidden in it.

Tokens of a grid are numbered row by row. A window may reach over the border of the grid; what lies
there has the number `rows * columns`, that of one padding row after the last token. Tables are
numpy arrays, so that a trace takes them as constants: partition, roll and unfold are then one
gather.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Grid = tuple[int, int]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]
_T = TypeVar("_T", bound=np.generic)


def padded(grid: Grid, window: int) -> Grid:
    """The grid with its sides rounded up to whole windows."""
    return math.ceil(grid[0] / window) * window, math.ceil(grid[1] / window) * window


@lru_cache(maxsize=64)
def window_index(grid: Grid, window: int, shift: int = 0) -> Index:
    """Tokens of each window of the padded grid, cyclically shifted up and left.

    Returns:
        (windows, window^2), windows and the tokens in each row by row.
    """
    rows, columns = (
        (np.arange(side).reshape(-1, window) + shift) % side for side in padded(grid, window)
    )
    return _frozen(_crossed(grid, rows, columns))


@lru_cache(maxsize=64)
def square_index(grid: Grid, window: int, side: int, *, inside: bool = False) -> Index:
    """Tokens of the square around each window, (windows, side^2).

    The window lies in the middle of its square, above and left of it if that is between two tokens.

    Args:
        grid: (rows, columns) of the tokens.
        window: Side of the windows.
        side: Side of the squares.
        inside: Move the squares into the grid, and cut them to it if it is smaller.
    """
    return _frozen(_crossed(grid, *_squares(grid, window, side, inside=inside)))


@lru_cache(maxsize=64)
def pooling_index(grid: Grid, window: int, side: int) -> Index:
    """Tokens that each of `side` x `side` cells of every window pools.

    The cells are those of adaptive pooling: they share tokens if `side` does not divide `window`.
    If cells differ in size, the last token of the smaller ones is repeated, so that a maximum
    stays the same.

    Returns:
        (windows * side^2, tokens of the largest cell).
    """
    cells = [np.arange(i * window // side, math.ceil((i + 1) * window / side)) for i in range(side)]
    most = max(map(len, cells))
    cell = np.stack([np.pad(members, (0, most - len(members)), "edge") for members in cells])
    # (windows, cells, members) along each axis.
    rows, columns = (
        np.arange(0, length, window)[:, None, None] + cell for length in padded(grid, window)
    )
    index = _numbered(
        grid,
        rows[:, None, :, None, :, None],
        columns[None, :, None, :, None, :],
    )
    return _frozen(index.reshape(-1, most * most))


@lru_cache(maxsize=64)
def places(grid: Grid, window: int, shift: int = 0) -> Index:
    """Where `window_index` of the same arguments holds each token, (rows * columns,)."""
    index = window_index(grid, window, shift).ravel()
    return _frozen(np.argsort(index, kind="stable")[: math.prod(grid)])


@lru_cache(maxsize=64)
def relative_positions(window: int) -> Index:
    """Row of the bias table for each pair of tokens in a window, (window^2, window^2).

    The table is ordered by the offset in rows and then in columns, from -(window - 1) on.
    """
    row, column = np.divmod(np.arange(window**2), window)
    down, right = (axis[:, None] - axis + window - 1 for axis in (row, column))
    return _frozen(down * (2 * window - 1) + right)


@lru_cache(maxsize=64)
def shift_mask(grid: Grid, window: int, shift: int) -> Mask:
    """Pairs of one shifted window that are no neighbours in the padded grid: they do not attend.

    Liu et al., "Swin Transformer" (ICCV 2021), section 3.2.

    Returns:
        (windows, window^2, window^2).
    """
    whole = padded(grid, window)
    regions = [
        np.searchsorted([side - window, side - shift], np.arange(side), "right") for side in whole
    ]
    # Of a row or column after the shift: the last ones came around from the other border.
    rows, columns = (region.reshape(-1, window) for region in regions)
    region = 3 * rows[:, None, :, None] + columns[None, :, None, :]
    region = region.reshape(-1, window**2)
    return _frozen(region[:, :, None] != region[:, None, :])


@lru_cache(maxsize=64)
def hidden_keys(grid: Grid, window: int, side: int, pad: Grid) -> Mask:
    """Keys of `square_index` that the published backbone of STViT-R masks.

    It masks what is outside of the grid and the last `pad` rows and columns, in the corner only.
    A `pad` of 0 means all rows, or all columns. Where a window would lose all its keys, the
    published constant is the same for each, and they all stay.

    Args:
        grid: (rows, columns) of the tokens, in whole windows.
        window: Side of the windows.
        side: Side of the squares.
        pad: Rows and columns by which the image tokens were padded.

    Returns:
        (windows, side^2).
    """
    rows, columns = _squares(grid, window, side, inside=False)
    outside = _crossed(grid, rows, columns) == math.prod(grid)
    last = [
        (axis >= length - count) | (count == 0)
        for axis, length, count in zip((rows, columns), grid, pad, strict=True)
    ]
    corner = (last[0][:, None, :, None] & last[1][None, :, None, :]).reshape(outside.shape)
    hidden = outside | corner
    hidden[hidden.all(axis=1)] = False
    return _frozen(hidden)


@lru_cache(maxsize=64)
def merging_index(grid: Grid) -> Index:
    """Tokens of each 2 x 2 patch, columns first, (ceil(rows / 2) * ceil(columns / 2), 4)."""
    index = window_index(grid, 2)
    return _frozen(index[:, [0, 2, 1, 3]])


def in_windows(grid: Grid, window: int, index: Index) -> Index:
    """Translate an index of tokens row by row to one of the same tokens window by window.

    The windows divide the grid. The padding row stays the last.
    """
    order = places(grid, window)
    return _frozen(np.append(order, math.prod(grid))[index])


def _squares(grid: Grid, window: int, side: int, *, inside: bool) -> tuple[Index, Index]:
    """Rows and columns of each square, (windows along the axis, side)."""
    axes = []
    for length, whole in zip(grid, padded(grid, window), strict=True):
        starts = np.arange(0, whole, window) - (side - window) // 2
        length_of_side = min(side, length) if inside else side
        if inside:
            starts = np.clip(starts, 0, length - length_of_side)
        axes.append(starts[:, None] + np.arange(length_of_side))
    rows, columns = axes
    return rows, columns


def _crossed(grid: Grid, rows: Index, columns: Index) -> Index:
    """Numbers of the tokens in every pair of a group of rows and one of columns."""
    index = _numbered(grid, rows[:, None, :, None], columns[None, :, None, :])
    return index.reshape(-1, rows.shape[1] * columns.shape[1])


def _numbered(grid: Grid, rows: Index, columns: Index) -> Index:
    height, width = grid
    is_token = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return np.where(is_token, rows * width + columns, height * width)


def _frozen(table: NDArray[_T]) -> NDArray[_T]:
    table = np.ascontiguousarray(table)
    table.setflags(write=False)
    return table
