"""The best window of coarse tokens, inside which LF-ViT chooses its targets.

Hu et al., "LF-ViT: Reducing Spatial Redundancy in Vision Transformer for Efficient Image
Recognition" (AAAI 2024). Slices and sums are the same in numpy and in torch, so that the host, the
torch network and the graph traced from it share one computation.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Grid = tuple[int, int]

OUTSIDE = -1.0
"""Score of a token outside of the window: below every share of attention."""


def window_sums(score: Any, grid: Grid, side: int) -> Any:
    """Add up the scores in every window; the best is the first with the largest sum, row by row.

    The sums are a fixed sequence of additions, across and then down. Each rounds alike wherever it
    is computed, which a matrix product does not promise, so that equal windows tie everywhere.

    Args:
        score: Class attention of the coarse tokens, (B, N): an array of numpy, or a tensor.
        grid: Their (rows, columns).
        side: Rows and columns of the window.

    Returns:
        Sums in the order of `window_members`, (B, windows), of the same library.
    """
    rows, columns = grid
    field = score.reshape(-1, rows, columns)
    across = field[:, :, : columns - side + 1]
    for shift in range(1, side):
        across = across + field[:, :, shift : columns - side + 1 + shift]
    down = across[:, : rows - side + 1]
    for shift in range(1, side):
        down = down + across[:, shift : rows - side + 1 + shift]
    return down.reshape(-1, (rows - side + 1) * (columns - side + 1))


@lru_cache(maxsize=16)
def window_members(grid: Grid, side: int) -> NDArray[np.bool_]:
    """Tell which coarse tokens each window holds, (windows, N), windows row by row."""
    rows, columns = grid
    members = [
        np.pad(
            np.ones((side, side), np.bool_),
            ((top, rows - side - top), (left, columns - side - left)),
        ).ravel()
        for top in range(rows - side + 1)
        for left in range(columns - side + 1)
    ]
    table = np.stack(members)
    table.setflags(write=False)
    return table
