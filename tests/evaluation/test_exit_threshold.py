from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from sacvit_deploy.errors import DataError, GoalError
from sacvit_deploy.evaluation.answers import Skipped
from sacvit_deploy.evaluation.exit_sweep import sweep_exits
from sacvit_deploy.evaluation.exit_threshold import (
    ExitGoal,
    ThresholdSearch,
    find_threshold,
    measure_threshold,
)
from tests.evaluation.answers_made_up import EARLY_MS, REFINE_MS, made_up_answers, population
from tests.fakes import SAC

GOALS = (
    ExitGoal(value=0.02),
    ExitGoal("target_macs", 1e9),
    ExitGoal("target_exit_fraction", 0.5),
    ExitGoal("target_latency_ms", EARLY_MS + REFINE_MS),
    ExitGoal("target_latency_ms", EARLY_MS + REFINE_MS, percentile=95),
)


def test_the_threshold_that_is_right_by_construction():
    """The 200 least sure of 1000 are wrong early; the second stage knows them all."""
    sure = np.linspace(0.51, 0.99, 1000)
    answers = made_up_answers(sure.tolist(), (np.arange(1000) >= 200).tolist(), [True] * 1000)
    found = find_threshold(answers, SAC, ThresholdSearch(ExitGoal(value=0)))
    assert sure[199] < found.chosen.eta < sure[200]
    assert found.chosen.top1 == 1
    assert found.chosen.early_exit_fraction == 0.8
    assert found.chosen.latency_ms_mean == pytest.approx(EARLY_MS + 0.2 * REFINE_MS)
    assert found.reached == 0
    assert found.intervals["top1"] == (1.0, 1.0)
    low, high = found.intervals["early_exit_fraction"]
    assert low < 0.8 < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 1000), rel=0.1)
    assert found.warnings == []


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_every_interval_holds_what_was_found(goal):
    found = find_threshold(population(300, seed=6), SAC, ThresholdSearch(goal))
    for name, (low, high) in found.intervals.items():
        value = found.reached if name == "goal" else getattr(found.chosen, name)
        assert low - 1e-9 <= value <= high + 1e-9, name


def test_the_interval_of_a_fixed_threshold_covers_what_other_pictures_give():
    """A goal whose threshold hardly depends on the data, so that the truth is known."""
    truth = sweep_exits(population(100_000, seed=7), SAC)
    covered = 0
    for seed in range(100):
        search = ThresholdSearch(ExitGoal("target_exit_fraction", 1), seed=seed, resamples=400)
        found = find_threshold(population(300, seed=100 + seed), SAC, search)
        low, high = found.intervals["top1"]
        covered += low <= truth.top1[0] <= high
    assert covered >= 88  # of 100; 95 are expected, with a standard error of 2.2


def test_a_temperature_is_fitted_and_the_threshold_is_for_it():
    answers = population(2000, seed=8)
    # Surer than it should be, by a factor that is known.
    decisions = dataclasses.replace(
        answers.decisions, early_logits=answers.decisions.early_logits * 2
    )
    sure = dataclasses.replace(answers, decisions=decisions)
    goal = ExitGoal(value=0.02)
    found = find_threshold(sure, SAC, ThresholdSearch(goal, temperature_scaling=True))
    plain = find_threshold(answers, SAC, ThresholdSearch(goal))
    assert found.temperature == pytest.approx(2, rel=0.15)
    assert found.likelihood is not None
    assert found.likelihood.after < found.likelihood.before
    # With two classes a temperature changes no order, so that the same pictures leave.
    assert found.chosen.early_exit_fraction == plain.chosen.early_exit_fraction
    assert found.chosen.eta == pytest.approx(plain.chosen.eta, abs=0.03)


def test_a_record_says_what_was_found():
    found = find_threshold(population(300, seed=9), SAC, ThresholdSearch())
    record = found.record("int8", "onnxruntime")
    assert (record.precision, record.runtime) == ("int8", "onnxruntime")
    assert (record.eta, record.temperature) == (found.chosen.eta, 1.0)
    assert record.goal == "max_accuracy_drop=0.005"
    assert record.top1_interval == found.intervals["top1"]
    assert found.chosen in record.curve
    assert sum(record.confidence_histogram) == pytest.approx(1)


def test_the_document_is_that_of_the_contract():
    found = find_threshold(population(300, seed=9), SAC, ThresholdSearch(temperature_scaling=True))
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert {"eta", "top1", "macs_mean_g", "curve"} <= set(values)
    assert values["goal"]["kind"] == "max_accuracy_drop"
    assert values["goal"]["reached"] <= 0.005
    assert set(values["curve"][0]) == {
        *("eta", "top1", "early_exit_fraction", "macs_mean_g", "latency_ms_mean"),
        "latency_ms_p95",
    }


def test_the_seed_decides():
    answers = population(200, seed=10)
    first = find_threshold(answers, SAC, ThresholdSearch(seed=1))
    assert find_threshold(answers, SAC, ThresholdSearch(seed=1)) == first
    assert find_threshold(answers, SAC, ThresholdSearch(seed=2)).intervals != first.intervals


def test_warnings_say_what_to_know():
    answers = dataclasses.replace(
        population(60, seed=11), skipped=(Skipped("bad.png", "It is empty."),)
    )
    few, skipped = find_threshold(answers, SAC, ThresholdSearch()).warnings
    assert "60 pictures are few" in few
    assert "bad.png: It is empty." in skipped
    always_right = made_up_answers([0.6] * 60, [True] * 60, [True] * 60)
    found = find_threshold(always_right, SAC, ThresholdSearch(temperature_scaling=True))
    assert "end of its range" in found.warnings[1]


def test_too_few_pictures_are_refused():
    with pytest.raises(DataError, match="49 pictures"):
        find_threshold(population(49, seed=12), SAC, ThresholdSearch())


def test_a_goal_that_cannot_be_met_is_an_error():
    with pytest.raises(GoalError, match="No exit threshold"):
        find_threshold(
            population(60, seed=13), SAC, ThresholdSearch(ExitGoal("target_latency_ms", 0.1))
        )


def test_a_threshold_is_measured_on_other_pictures():
    search = ThresholdSearch(ExitGoal(value=0.02), temperature_scaling=True)
    here, there = population(500, seed=14), population(5000, seed=15)
    found = find_threshold(here, SAC, search)
    assert measure_threshold(here, SAC, found, search).intervals == found.intervals
    measured = measure_threshold(there, SAC, found, search)
    assert (measured.chosen.eta, measured.temperature) == (found.chosen.eta, found.temperature)
    assert measured.images == 5000
    share = (sweep_exits(there, SAC, found.temperature).confidence > found.chosen.eta).mean()
    assert measured.chosen.early_exit_fraction == pytest.approx(share)
