"""Which coarse tokens the second stage looks at again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def select_tokens(
    score: NDArray[Any], num_targets: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the coarse tokens by score; of equal scores the lowest index wins.

    Args:
        score: (B, N), finite.
        num_targets: M.

    Returns:
        Targets (B, M) and non-targets (B, N-M), each best first.
    """
    # Negated, because numpy sorts upwards and reversing a stable sort would put ties backwards.
    order = np.argsort(-score, axis=1, kind="stable").astype(np.int64, copy=False)
    return order[:, :num_targets], order[:, num_targets:]
