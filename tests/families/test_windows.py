from __future__ import annotations

import numpy as np
import pytest
import torch

from sacvit_deploy.families.windows import window_members, window_sums

GRIDS = [((7, 7), 5), ((9, 9), 8), ((4, 6), 3), ((6, 4), 4), ((3, 5), 1), ((5, 5), 5)]


@pytest.mark.parametrize(("grid", "side"), GRIDS)
def test_members_are_those_of_each_window_row_by_row(grid, side):
    rows, columns = grid
    wanted = [
        {r * columns + c for r in range(top, top + side) for c in range(left, left + side)}
        for top in range(rows - side + 1)
        for left in range(columns - side + 1)
    ]
    assert [set(np.flatnonzero(row)) for row in window_members(grid, side)] == wanted


@pytest.mark.parametrize(("grid", "side"), GRIDS)
def test_sums_are_those_of_the_members(grid, side):
    score = np.random.default_rng(side).random((200, grid[0] * grid[1]))
    wanted = score @ window_members(grid, side).T
    np.testing.assert_allclose(window_sums(score, grid, side), wanted, rtol=0, atol=1e-12)


def test_equal_windows_have_equal_sums_though_each_rounds():
    """Thirds do not add up exactly, and yet every window of one colour has the same sum."""
    score = np.full((1, 49), 1 / 3, np.float32)
    assert len(set(window_sums(score, (7, 7), 5)[0])) == 1
    score[0, [3, 45]] = 1  # one in the last column of the first window, one in the last window
    assert window_sums(score, (7, 7), 5).argmax() == 0
    score[0, 45] = 1.25
    assert window_sums(score, (7, 7), 5).argmax() == 6


def test_torch_finds_the_same_with_many_ties():
    score = np.random.default_rng(0).integers(0, 3, (500, 49)).astype(np.float32) / 7
    found = window_sums(torch.from_numpy(score), (7, 7), 3)
    np.testing.assert_array_equal(found.numpy(), window_sums(score, (7, 7), 3))
