from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.evaluation.statistics import (
    LARGEST,
    SMALLEST,
    fit_temperature,
    negative_log_likelihood,
)


def drawn(temperature: float, count: int = 20_000):
    """Logits, and classes drawn with the probabilities they give at a temperature."""
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=3, size=(count, 6))
    noise = generator.gumbel(size=logits.shape)
    return logits.astype(np.float32), (logits / temperature + noise).argmax(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_the_data_is_found(temperature):
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.03)


def test_it_has_the_least_likelihood_of_a_grid():
    logits, truth = drawn(1.7, 500)
    found = fit_temperature(logits, truth)
    least = min(
        negative_log_likelihood(logits, truth, t) for t in np.geomspace(SMALLEST, LARGEST, 400)
    )
    assert negative_log_likelihood(logits, truth, found) <= least + 1e-9


def test_likelihood_by_hand():
    logits = np.log(np.array([[0.2, 0.8], [0.5, 0.5]]))
    found = negative_log_likelihood(logits, np.array([1, 0]), 1.0)
    assert found == pytest.approx(-(np.log(0.8) + np.log(0.5)) / 2)


def test_where_all_is_right_the_range_ends():
    logits = np.eye(4) * 5
    assert fit_temperature(logits, np.arange(4)) == pytest.approx(SMALLEST, rel=1e-3)
    wrong = fit_temperature(logits, (np.arange(4) + 1) % 4)
    assert wrong == pytest.approx(LARGEST, rel=1e-3)
