from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from sacvit_deploy.errors import ConfigError, DataError, GoalError
from sacvit_deploy.evaluation.answers import Skipped
from sacvit_deploy.evaluation.exit_sweep import sweep_exits
from sacvit_deploy.evaluation.exit_threshold import (
    ExitGoal,
    ThresholdSearch,
    choose_exit,
    find_threshold,
    measure_threshold,
)
from tests.evaluation.answers_made_up import EARLY_MS, REFINE_MS, made_up_answers, population
from tests.fakes import SAC

NAN, INFINITY = float("nan"), float("inf")


def stairs():
    """100 pictures: the first stage is wrong on the 30 least confident, the second never."""
    confidences = np.linspace(0.51, 0.99, 100)
    return sweep_exits(
        made_up_answers(
            confidences.tolist(), (confidences > confidences[29]).tolist(), [True] * 100
        ),
        SAC,
    )


@pytest.mark.parametrize(
    ("goal", "stay"),
    [
        (ExitGoal(value=0), 30),
        (ExitGoal(value=0.005), 30),
        (ExitGoal(value=0.01), 29),
        (ExitGoal(value=0.1), 20),
        (ExitGoal(value=1), 0),
        (ExitGoal(value=0.05, reference_top1=0.85), 10),
        (ExitGoal("target_exit_fraction", 0.8), 20),
        (ExitGoal("target_exit_fraction", 0.5), 30),  # more would cost and bring nothing
        (ExitGoal("target_exit_fraction", 1), 0),
        (ExitGoal("target_latency_ms", EARLY_MS + 0.2 * REFINE_MS), 20),
        (ExitGoal("target_latency_ms", 1000), 30),
        (ExitGoal("target_latency_ms", EARLY_MS, percentile=90), 9),  # 10 would be interpolated
        (ExitGoal("target_latency_ms", EARLY_MS, percentile=50), 30),
    ],
    ids=str,
)
def test_the_right_threshold_is_known(goal, stay):
    sweep = stairs()
    index = choose_exit(sweep, goal)
    assert sweep.num_refined[index] == stay
    assert goal.is_met(goal.quantity(sweep, index))


@pytest.mark.parametrize("refined", [0.0, 0.1, 0.255])
def test_a_mean_cost_is_kept(refined):
    sweep = stairs()
    early, late = sweep.macs_g
    index = choose_exit(sweep, ExitGoal("target_macs", early + refined * (late - early)))
    assert sweep.num_refined[index] == int(100 * refined)


def test_the_choice_is_the_best_of_all_that_meet_the_goal():
    """Against a search through every candidate, on a curve that goes up and down."""
    sweep = sweep_exits(population(400, seed=5), SAC)
    every = range(len(sweep.eta))
    for goal in (ExitGoal(value=0.03), ExitGoal("target_latency_ms", 6.5, percentile=70)):
        met = [i for i in every if goal.is_met(goal.quantity(sweep, i))]
        chosen = choose_exit(sweep, goal)
        assert chosen in met
        if goal.kind == "max_accuracy_drop":
            assert sweep.macs_mean_g[chosen] == min(sweep.macs_mean_g[i] for i in met)
        else:
            assert sweep.top1[chosen] == max(sweep.top1[i] for i in met)


@pytest.mark.parametrize(
    ("goal", "says"),
    [
        (ExitGoal("target_latency_ms", 1.5), "eta 0 with a latency in ms of 2:"),
        (ExitGoal("target_latency_ms", 1.5, percentile=95), "percentile=95.*eta 0 with"),
        (ExitGoal("target_macs", 1e-6), "target_macs=1e-06.*eta 0 with a mean cost in G"),
        (
            ExitGoal(value=0.005, reference_top1=0.99),
            r"reference_top1=0\.99.*eta 0 with a drop of 0\.09: top-1 90\.00%, 100\.0% exit early",
        ),
    ],
    ids=str,
)
def test_a_goal_that_cannot_be_met_says_how_near_it_comes(goal, says):
    confidences = np.linspace(0.51, 0.99, 100)
    correct = np.arange(100) >= 10
    sweep = sweep_exits(
        made_up_answers(confidences.tolist(), correct.tolist(), correct.tolist()), SAC
    )
    with pytest.raises(GoalError, match=says) as caught:
        choose_exit(sweep, goal)
    # What it says to ask for works.
    asked = re.search(r"Ask for (\S+) or more", caught.value.fix)
    assert asked
    eased = ExitGoal(goal.kind, float(asked[1]), goal.reference_top1, goal.percentile)
    choose_exit(sweep, eased)


@pytest.mark.parametrize(
    "arguments",
    [
        ("max_accuracy_drop", -0.1),
        ("max_accuracy_drop", 1.1),
        ("max_accuracy_drop", NAN),
        ("target_exit_fraction", 1.01),
        ("target_macs", 0),
        ("target_macs", INFINITY),
        ("target_latency_ms", -1),
        ("target_latency_ms", NAN),
        ("target_macs", 1, 0.5),
        ("max_accuracy_drop", 0.1, 1.5),
        ("max_accuracy_drop", 0.1, NAN),
        ("max_accuracy_drop", 0.1, None, 95),
        ("target_latency_ms", 8, None, 100),
        ("target_latency_ms", 8, None, 0),
    ],
)
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigError):
        ExitGoal(*arguments)


def test_a_goal_is_named_in_full():
    assert str(ExitGoal()) == "max_accuracy_drop=0.005"
    assert str(ExitGoal(value=0, reference_top1=0.8)) == "max_accuracy_drop=0, reference_top1=0.8"
    assert (
        str(ExitGoal("target_latency_ms", 8, percentile=95)) == "target_latency_ms=8, percentile=95"
    )


GOALS = (
    ExitGoal(value=0.02),
    ExitGoal("target_macs", 1e9),
    ExitGoal("target_exit_fraction", 0.5),
    ExitGoal("target_latency_ms", EARLY_MS + REFINE_MS),
    ExitGoal("target_latency_ms", EARLY_MS + REFINE_MS, percentile=95),
)


def test_the_threshold_that_is_right_by_construction():
    """1000 pictures: the first stage is wrong on the 200 least confident, the second never."""
    confidences = np.linspace(0.51, 0.99, 1000)
    answers = made_up_answers(
        confidences.tolist(), (np.arange(1000) >= 200).tolist(), [True] * 1000
    )
    found = find_threshold(answers, SAC, ThresholdSearch(ExitGoal(value=0)))
    assert confidences[199] < found.chosen.eta < confidences[200]
    assert found.chosen.top1 == 1
    assert found.chosen.early_exit_fraction == 0.8
    assert found.chosen.latency_ms_mean == pytest.approx(EARLY_MS + 0.2 * REFINE_MS)
    assert found.reached == 0
    assert found.intervals["top1"] == pytest.approx((1 - 1.96**2 / (1000 + 1.96**2), 1), abs=1e-4)
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


@pytest.mark.parametrize(
    ("goal", "same"),
    [
        (ExitGoal("target_macs", 1.0), "macs_mean_g"),
        (ExitGoal("target_exit_fraction", 0.6), "early_exit_fraction"),
        (ExitGoal("target_latency_ms", 5), "latency_ms_mean"),
    ],
    ids=str,
)
def test_the_same_quantity_has_one_interval(goal, same):
    found = find_threshold(population(300, seed=6), SAC, ThresholdSearch(goal))
    assert found.intervals["goal"] == found.intervals[same]
    early, late = found.macs_g
    low, high = found.intervals["early_exit_fraction"]
    cost = (late - high * (late - early), late - low * (late - early))
    assert found.intervals["macs_mean_g"] == pytest.approx(cost)


def test_a_drop_from_a_number_is_as_uncertain_as_top1():
    goal = ExitGoal(value=0.1, reference_top1=0.9)
    found = find_threshold(population(300, seed=6), SAC, ThresholdSearch(goal))
    low, high = found.intervals["top1"]
    assert found.intervals["goal"] == pytest.approx((0.9 - high, 0.9 - low))


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
    # Overconfident by a known factor.
    decisions = dataclasses.replace(
        answers.decisions, early_logits=answers.decisions.early_logits * 2
    )
    overconfident = dataclasses.replace(answers, decisions=decisions)
    goal = ExitGoal(value=0.02)
    found = find_threshold(overconfident, SAC, ThresholdSearch(goal, temperature_scaling=True))
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
