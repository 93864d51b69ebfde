"""Where a coarse token lies in the fine grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fine_index(coarse: NDArray[np.int64], coarse_columns: int) -> NDArray[np.int64]:
    """The four children of each coarse token (Hu et al., SAC-ViT, Eq. 11).

    The token at row r and column c of the coarse grid covers rows 2r, 2r+1 and columns 2c, 2c+1 of
    the fine grid, whose rows are twice as long.

    Args:
        coarse: Coarse indices, (B, M).
        coarse_columns: H1, the columns of the coarse grid.

    Returns:
        Fine indices, (B, 4M), child by child, target by target.
    """
    first = 4 * coarse - 2 * (coarse % coarse_columns)
    below = 2 * coarse_columns
    children = first[..., None] + np.array([0, 1, below, below + 1], dtype=np.int64)
    return children.reshape(*coarse.shape[:-1], -1)
