from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from sacvit_deploy.model.windows import (
    hidden_keys,
    in_windows,
    merging_index,
    padded,
    places,
    pooling_index,
    relative_positions,
    shift_mask,
    square_index,
    window_index,
)

GRIDS = [(14, 14), (10, 14), (14, 9), (5, 6), (7, 7)]


def numbers(grid) -> torch.Tensor:
    """The number of each token, (1, 1, rows, columns)."""
    rows, columns = grid
    return torch.arange(rows * columns, dtype=torch.float64).reshape(1, 1, rows, columns)


def on_whole_windows(grid, window) -> torch.Tensor:
    """`numbers`, where what pads the windows has the number of the padding row."""
    rows, columns = padded(grid, window)
    pad = (0, columns - grid[1], 0, rows - grid[0])
    return functional.pad(numbers(grid), pad, value=grid[0] * grid[1])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shift", [0, 3])
def test_windows_are_those_of_roll_and_unfold(grid, shift):
    rolled = torch.roll(on_whole_windows(grid, 7), (-shift, -shift), (2, 3))
    wanted = functional.unfold(rolled, 7, stride=7)[0].T
    np.testing.assert_array_equal(window_index(grid, 7, shift), wanted.numpy())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shift", [0, 3])
def test_places_undo_windows(grid, shift):
    found = window_index(grid, 7, shift).ravel()[places(grid, 7, shift)]
    np.testing.assert_array_equal(found, np.arange(grid[0] * grid[1]))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("side", "above"), [(14, 3), (21, 7)])
def test_squares_are_those_of_a_padded_unfold(grid, side, above):
    below = side - 7 - above
    whole = on_whole_windows(grid, 7)
    ring = functional.pad(whole, (above, below, above, below), value=grid[0] * grid[1])
    wanted = functional.unfold(ring, side, stride=7)[0].T
    np.testing.assert_array_equal(square_index(grid, 7, side), wanted.numpy())


def test_squares_inside_are_those_of_the_published_classifier():
    wanted = functional.unfold(numbers((14, 14)), 10, stride=4)[0].T
    np.testing.assert_array_equal(square_index((14, 14), 7, 10, inside=True), wanted.numpy())


def test_squares_inside_a_smaller_grid_are_all_of_it():
    found = square_index((7, 14), 7, 10, inside=True)
    assert found.shape == (2, 70)
    np.testing.assert_array_equal(found[0].reshape(7, 10)[:, 0], np.arange(7) * 14)


@pytest.mark.parametrize(("window", "side"), [(7, 3), (4, 2), (7, 4), (5, 5), (6, 1)])
def test_cells_pool_as_adaptive_pooling_does(window, side):
    grid = 2 * window, 3 * window
    values = torch.rand(1, 1, *grid, dtype=torch.float64)
    wanted = functional.adaptive_max_pool2d(values, (2 * side, 3 * side))
    pooled = values.reshape(-1)[torch.tensor(pooling_index(grid, window, side))].amax(1)
    order = window_index((2 * side, 3 * side), side).ravel()
    np.testing.assert_array_equal(pooled.numpy(), wanted.numpy().ravel()[order])


@pytest.mark.parametrize("grid", GRIDS)
def test_only_neighbours_of_the_padded_grid_attend_to_each_other(grid):
    rows, columns = padded(grid, 7)
    # Without the shift, tokens of one window are at most 6 apart; those that came around are not.
    place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    rolled = torch.roll(place.double()[:, None], (-3, -3), (2, 3))
    row, column = (functional.unfold(each[None], 7, stride=7)[0].T for each in rolled)
    apart = [(axis[:, :, None] - axis[:, None]).abs() for axis in (row, column)]
    wanted = torch.maximum(*apart) > 6
    found = shift_mask(grid, 7, 3)
    if min(rows, columns) > 7:
        np.testing.assert_array_equal(found, wanted.numpy())
    else:
        # In the only window along an axis, those that came around are masked all the same.
        assert found.any()
        assert not found[:, range(49), range(49)].any()


def test_the_bias_table_is_ordered_by_offset():
    found = relative_positions(3)
    for (a, (y, x)), (b, (v, u)) in itertools.product(enumerate(np.ndindex(3, 3)), repeat=2):
        assert found[a, b] == (y - v + 2) * 5 + (x - u + 2)


@pytest.mark.parametrize(
    ("grid", "pad", "corner"),
    [
        ((14, 14), (0, 0), None),
        ((14, 14), (4, 0), (slice(10, None), slice(None))),
        ((14, 14), (0, 2), (slice(None), slice(12, None))),
        ((14, 14), (4, 2), (slice(10, None), slice(12, None))),
    ],
)
def test_hidden_keys_are_those_of_the_published_slices(grid, pad, corner):
    found = hidden_keys(grid, 7, 14, pad)
    if corner is None:
        # The published constant is the same for every key, which hides none.
        assert not found.any()
        return
    mask = torch.zeros(1, 1, *grid)
    mask[0, 0][corner] = 1
    ring = functional.pad(mask, (3, 4, 3, 4), value=1)
    np.testing.assert_array_equal(found, functional.unfold(ring, 14, stride=7)[0].T.numpy() > 0)


def test_no_window_loses_all_its_keys():
    assert not hidden_keys((3, 3), 3, 27, (5, 5)).any()


def test_merging_takes_columns_first():
    np.testing.assert_array_equal(merging_index((3, 4))[0], [0, 4, 1, 5])
    np.testing.assert_array_equal(merging_index((3, 4))[3], [10, 12, 11, 12])


def test_an_index_of_tokens_in_windows():
    grid, window = (4, 6), 2
    tokens = np.arange(24)[window_index(grid, window).ravel()]
    index = square_index(grid, window, 4)
    found = np.append(tokens, 24)[in_windows(grid, window, index)]
    np.testing.assert_array_equal(found, index)
