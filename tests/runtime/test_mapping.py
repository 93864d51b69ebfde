from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.runtime.algorithm import fine_index


@pytest.mark.parametrize("grid", [(7, 7), (9, 9), (3, 4), (4, 3), (1, 5)])
def test_children_cover_the_token_in_the_fine_grid(grid) -> None:
    rows, columns = grid
    fine_grid = np.arange(4 * rows * columns).reshape(2 * rows, 2 * columns)
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        block = fine_grid[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert fine_index(np.array([[index]]), columns).tolist() == [block.ravel().tolist()]


def test_order_of_the_targets_is_kept() -> None:
    found = fine_index(np.array([[8, 0]]), 7)
    assert found.tolist() == [[30, 31, 44, 45, 0, 1, 14, 15]]
    assert found.dtype == np.int64
