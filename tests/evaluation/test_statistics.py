from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.evaluation.statistics import bootstrap_intervals, mean_of, percentile_of


def test_it_covers_the_truth_as_often_as_it_says():
    """400 data sets of 250 pictures that are right in 80 % of all cases."""
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        right = generator.random(250) < 0.8
        ends = bootstrap_intervals({"top1": mean_of(right)}, 250, seed=seed, resamples=400)["top1"]
        covered += ends[0] <= 0.8 <= ends[1]
    # 0.95 give or take three standard errors of 400 trials, and the grain of 250 pictures.
    assert covered / 400 == pytest.approx(0.95, abs=0.035)


def test_it_is_as_wide_as_theory_says():
    right = np.arange(1000) < 700
    low, high = bootstrap_intervals({"top1": mean_of(right)}, 1000)["top1"]
    expected = 2 * 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert high - low == pytest.approx(expected, rel=0.08)
    assert (low + high) / 2 == pytest.approx(0.7, abs=0.005)


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
