from __future__ import annotations

import re

import numpy as np
import pytest

from sacvit_deploy.errors import ConfigError, GoalError
from sacvit_deploy.evaluation.exit_sweep import sweep_exits
from sacvit_deploy.evaluation.exit_threshold import ExitGoal, choose_exit
from tests.evaluation.answers_made_up import EARLY_MS, REFINE_MS, made_up_answers, population
from tests.fakes import SAC

NAN, INFINITY = float("nan"), float("inf")


def stairs():
    """100 pictures; the 30 least sure are wrong early, and the second stage is always right."""
    sure = np.linspace(0.51, 0.99, 100)
    return sweep_exits(
        made_up_answers(sure.tolist(), (sure > sure[29]).tolist(), [True] * 100), SAC
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
    assert sweep.stay[index] == stay
    assert goal.is_met(goal.quantity(sweep, index))


@pytest.mark.parametrize("refined", [0.0, 0.1, 0.255])
def test_a_mean_cost_is_kept(refined):
    sweep = stairs()
    early, late = sweep.macs_g
    index = choose_exit(sweep, ExitGoal("target_macs", early + refined * (late - early)))
    assert sweep.stay[index] == int(100 * refined)


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
            r"reference_top1=0\.99.*eta 0 with a drop of 0\.09: top-1 90\.00%, 100\.0% leave early",
        ),
    ],
    ids=str,
)
def test_a_goal_that_cannot_be_met_says_how_near_it_comes(goal, says):
    sure = np.linspace(0.51, 0.99, 100)
    right = np.arange(100) >= 10
    sweep = sweep_exits(made_up_answers(sure.tolist(), right.tolist(), right.tolist()), SAC)
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
