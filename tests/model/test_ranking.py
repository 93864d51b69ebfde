from __future__ import annotations

import numpy as np
import pytest
import torch

from sacvit_deploy.model.ranking import ranking_key

COUNT = 49


def best_first(values: np.ndarray) -> np.ndarray:
    order: np.ndarray = np.argsort(-values, axis=1, kind="stable")
    return order


def keys_of(values: np.ndarray) -> np.ndarray:
    keys: np.ndarray = ranking_key(torch.from_numpy(values)).numpy()
    return keys


def test_keys_have_no_ties_and_the_order_of_a_stable_sort():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 4, (100, COUNT)).astype(np.float32) / 7 * np.float32(1e-3)
    keys = keys_of(scores)
    assert keys.dtype == np.float32
    np.testing.assert_array_equal(np.sort(keys, axis=1), np.tile(np.arange(COUNT), (100, 1)))
    np.testing.assert_array_equal(keys.argsort(axis=1)[:, ::-1], best_first(scores))


@pytest.mark.parametrize("exponent", [0, -10, -60, -149])
def test_neighbouring_scores_have_keys_in_their_order(exponent):
    score = np.float32(2.0**exponent)
    row = np.full(COUNT, np.nextafter(score, np.float32(0)))
    row[7] = score
    assert keys_of(row[None]).argmax() == 7


def test_values_of_any_size_and_sign_are_ranked():
    margins = np.random.default_rng(1).normal(0, 5, (20, 197)).astype(np.float32)
    margins[:, ::3] = np.round(margins[:, ::3])
    margins[:, 5], margins[:, 9] = 3e38, -3e38
    np.testing.assert_array_equal(keys_of(margins).argsort(axis=1)[:, ::-1], best_first(margins))


def test_half_precision_is_compared_as_it_is():
    keys = ranking_key(torch.tensor([[0.25, 0.5]], dtype=torch.bfloat16))
    assert keys.tolist() == [[0.0, 1.0]]
