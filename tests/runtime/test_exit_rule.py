from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.runtime.algorithm import confidence, exits, softmax

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
