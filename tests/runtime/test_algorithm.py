from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.runtime.algorithm import (
    confidence,
    exits,
    fine_index,
    select_tokens,
    softmax,
    window_tokens,
)
from tests.fakes import LF, SAC

ROWS = np.array([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0], [-1e4, 0.0, 1e4]], dtype=np.float32)


def test_softmax_is_stable_and_sums_to_one() -> None:
    shares = softmax(ROWS)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(shares[0], np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum())
    assert shares[2].tolist() == [0, 0, 1]


def test_confidence_is_the_largest_probability() -> None:
    np.testing.assert_allclose(confidence(ROWS), softmax(ROWS).max(axis=1), rtol=1e-12)
    assert confidence(ROWS.astype(np.float16)).dtype == np.float64


@pytest.mark.parametrize("comparison", [">", ">="])
def test_eta_0_lets_all_leave_and_eta_1_none(comparison) -> None:
    sure = confidence(ROWS)
    assert sure[2] == 1  # saturated: `>=` alone would let it leave
    assert exits(sure, 0.0, comparison).all()
    assert not exits(sure, 1.0, comparison).any()


@pytest.mark.parametrize(("comparison", "leaves"), [(">", False), (">=", True)])
def test_equality_tells_the_comparisons_apart(comparison, leaves) -> None:
    assert exits(np.array([0.5]), 0.5, comparison).tolist() == [leaves]


def test_a_threshold_is_not_rounded_to_single_precision() -> None:
    sure = confidence(np.array([[21.0, 0.0]], dtype=np.float32))
    assert np.float32(sure[0]) == 1
    assert not exits(sure, 0.99999999999, ">").any()


def test_best_first_and_of_equal_scores_the_lowest_index() -> None:
    six_tokens = SAC.replace(image_size=(16, 24))
    score = np.array([[1, 3, 2, 3, 1, 2], [0, 0, 0, 0, 0, 0]], dtype=np.float32)
    target, non_target = select_tokens(score, six_tokens)
    assert target.tolist() == [[1, 3, 2], [0, 1, 2]]
    assert non_target.tolist() == [[5, 0, 4], [3, 4, 5]]
    assert target.dtype == non_target.dtype == np.int64


def test_with_a_window_all_targets_lie_in_the_best_one() -> None:
    config = LF.replace(image_size=(16, 24), window=2, alpha=0.7)  # 2 x 3 tokens, 3 of 4
    score = np.array([[9, 2, 0, 0, 3, 5], [0, 4, 4, 1, 2, 1]], dtype=np.float32)
    target, non_target = select_tokens(score, config)
    assert target.tolist() == [[0, 4, 1], [1, 2, 4]]
    assert non_target.tolist() == [[3, 2, 5], [5, 0, 3]]  # the window's own, then the others
    assert window_tokens(score, config).tolist() == [
        [True, True, False, True, True, False],
        [False, True, True, False, True, True],
    ]
    assert window_tokens(score, SAC).all()


@pytest.mark.parametrize("config", [SAC, LF], ids=["anywhere", "window"])
def test_agrees_with_torch_with_ties(config) -> None:
    import torch

    from sacvit_deploy.model import two_stage

    tokens = config.num_coarse_tokens
    score = np.random.default_rng(0).integers(0, 4, (50, tokens)).astype(np.float32) / 7
    target, non_target = select_tokens(score, config)
    wanted = two_stage.select_tokens(torch.from_numpy(score), config)
    np.testing.assert_array_equal(target, wanted.target.numpy())
    np.testing.assert_array_equal(non_target, wanted.non_target.numpy())


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
