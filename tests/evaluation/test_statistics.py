from __future__ import annotations

import math

import numpy as np
import pytest

from sacvit_deploy.evaluation.statistics import (
    LARGEST,
    SMALLEST,
    Confusion,
    bootstrap_intervals,
    class_rows,
    confusions,
    fit_temperature,
    mean_of,
    negative_log_likelihood,
    percentile_of,
    reliability,
    share_interval,
)


def test_it_covers_the_truth_as_often_as_it_says():
    """400 data sets of 250 pictures, with an accuracy of 80 %."""
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        correct = generator.random(250) < 0.8
        found = bootstrap_intervals({"top1": mean_of(correct)}, 250, seed=seed, resamples=400)
        low, high = found["top1"]
        covered += low <= 0.8 <= high
    # 0.95 give or take three standard errors of 400 trials, and the grain of 250 pictures.
    assert covered / 400 == pytest.approx(0.95, abs=0.035)


def test_it_is_as_wide_as_theory_says():
    correct = np.arange(1000) < 700
    low, high = bootstrap_intervals({"top1": mean_of(correct)}, 1000)["top1"]
    expected = 2 * 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert high - low == pytest.approx(expected, rel=0.08)
    assert (low + high) / 2 == pytest.approx(0.7, abs=0.005)


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.99])
def test_the_interval_of_a_share_covers_the_truth_as_often_as_it_says(truth):
    """Counted over all outcomes of 60 pictures, each as likely as it is."""
    outcomes = range(61)
    likely = [math.comb(60, n) * truth**n * (1 - truth) ** (60 - n) for n in outcomes]
    ends = [share_interval(n / 60, 60) for n in outcomes]
    covered = sum(p for p, (low, high) in zip(likely, ends, strict=True) if low <= truth <= high)
    assert 0.92 < covered < 0.99


def test_the_interval_of_a_share_by_hand():
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I.
    assert share_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert share_interval(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert share_interval(0 / 20, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert share_interval(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)
    assert share_interval(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert share_interval(0.0, 0) == (0, 1)


def test_it_agrees_with_the_bootstrap_on_many_pictures():
    correct = np.arange(1000) < 700
    drawn = bootstrap_intervals({"top1": mean_of(correct)}, 1000)["top1"]
    assert share_interval(0.7, 1000) == pytest.approx(drawn, abs=0.003)


def test_what_is_the_same_in_both_does_not_widen_a_difference():
    generator = np.random.default_rng(1)
    one = generator.random(500) < 0.6
    other = one.copy()
    other[:5] = ~other[:5]
    statistics = {"one": mean_of(one), "difference": mean_of(one.astype(float) - other)}
    found = bootstrap_intervals(statistics, 500)
    width = {name: high - low for name, (low, high) in found.items()}
    assert width["difference"] < width["one"] / 3


def test_the_seed_decides_and_the_size_of_a_chunk_does_not(monkeypatch):
    values = np.random.default_rng(2).random(100)
    statistics = {"mean": mean_of(values), "p90": percentile_of(values, 90)}
    first = bootstrap_intervals(statistics, 100, seed=4)
    assert bootstrap_intervals(statistics, 100, seed=4) == first
    assert bootstrap_intervals(statistics, 100, seed=5) != first
    monkeypatch.setattr("sacvit_deploy.evaluation.statistics._DRAWN_AT_ONCE", 1000)
    assert bootstrap_intervals(statistics, 100, seed=4) == first


def test_a_percentile_lies_in_its_interval():
    values = np.random.default_rng(3).exponential(size=400)
    low, high = bootstrap_intervals({"p95": percentile_of(values, 95)}, 400)["p95"]
    assert low < np.percentile(values, 95) < high


def test_classes_and_confusions_by_hand():
    true, predicted = np.array([2, 0, 2, 2]), np.array([2, 2, 0, 2])
    first, second = class_rows(true, ["cat", "dog", "emu"], {"top1": predicted == true})
    assert (first.class_index, first.label, first.images, first.top1) == (0, "cat", 1, 0)
    assert (second.class_index, second.label, second.images) == (2, "emu", 3)
    assert second.top1 == pytest.approx(2 / 3)
    assert second.early_exit_fraction is None
    found = confusions(true, predicted)
    assert found == (Confusion(0, 2, 1), Confusion(2, 0, 1), Confusion(2, 2, 2))


def test_reliability_by_hand():
    confidences = np.array([0.05, 0.1, 0.95, 1.0])
    found = reliability(confidences, np.array([False, True, True, True]), bins=10)
    first, *_, last = found.bins
    assert (first.images, first.accuracy, last.images, last.accuracy) == (2, 0.5, 2, 1.0)
    assert first.confidence == pytest.approx(0.075)
    assert last.confidence == pytest.approx(0.975)
    assert first.accuracy_interval == share_interval(0.5, 2)
    assert found.bins[4].accuracy_interval == (0, 1)
    assert found.ece == pytest.approx(0.5 * 0.425 + 0.5 * 0.025)


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
