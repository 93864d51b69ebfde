from __future__ import annotations

import numpy as np
import pytest
import torch

from sacvit_deploy.model.ranking import ranking_key

COUNT = 49


def best_first(values: np.ndarray) -> np.ndarray:
    order: np.ndarray = np.argsort(-values, axis=1, kind="stable")
    return order


def test_keys_have_no_ties_and_the_order_of_a_stable_sort():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 4, (100, COUNT)).astype(np.float32) / 7 * np.float32(1e-3)
    keys = ranking_key(torch.from_numpy(scores), 1.0).numpy()
    assert keys.dtype == np.int64
    assert all(len(set(row)) == COUNT for row in keys)
    np.testing.assert_array_equal(keys.argsort(axis=1)[:, ::-1], best_first(scores))


@pytest.mark.parametrize("count", [1, 2, 49, 64, 3840])
@pytest.mark.parametrize("bound", [1.0, 6e4])
def test_the_largest_values_do_not_overflow(count, bound):
    values = torch.full((1, count), bound)
    values[0, -1] = -bound
    keys = ranking_key(values, bound)[0].numpy()
    assert (keys[1:] < keys[:-1]).all()
    if count > 1:
        assert keys[0] > 0 > keys[-1]


@pytest.mark.parametrize("exponent", [0, -10, -20, -32])
def test_neighbouring_scores_have_keys_in_their_order(exponent):
    score = np.float32(2.0**exponent)
    below = np.nextafter(score, np.float32(0))
    row = np.full(COUNT, below)
    row[7] = score
    assert ranking_key(torch.from_numpy(row[None]), 1.0).argmax() == 7


def test_scores_within_one_step_tie_and_the_first_wins():
    row = np.full(COUNT, np.float32(2.0**-58))
    row[7] *= 2
    assert ranking_key(torch.from_numpy(row[None]), 1.0).argmax() == 0


def test_negative_values_are_ranked_too():
    margins = np.random.default_rng(1).normal(0, 5, (20, 197)).astype(np.float32)
    margins[:, ::3] = np.round(margins[:, ::3])
    keys = ranking_key(torch.from_numpy(margins), 6e4).numpy()
    np.testing.assert_array_equal(keys.argsort(axis=1)[:, ::-1], best_first(margins))


def test_half_precision_is_widened():
    keys = ranking_key(torch.tensor([[0.25, 0.5]], dtype=torch.bfloat16), 1.0)
    assert keys.argmax() == 1
    assert keys.min() > 0
