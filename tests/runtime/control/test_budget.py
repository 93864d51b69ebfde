from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.records import CalibrationPoint
from sacvit_deploy.runtime.control.budget import BudgetGoal
from tests.exit_records import exit_record

CURVE = tuple(
    CalibrationPoint(eta, top1, 1 - eta, 1.0, 1.0, 1.0)
    for eta, top1 in ((0.0, 0.6), (0.3, 0.7), (0.5, 0.69), (0.6, 0.8), (0.8, 0.82), (1.0, 0.8))
)


@pytest.mark.parametrize(
    ("arguments", "bounds"),
    [
        ({"min_top1": 0.8}, (0.6, 1.0)),
        ({"min_top1": 0.81}, (0.8, 0.8)),
        ({"min_top1": 0.7}, (0.6, 1.0)),  # 0.5 is not good enough, so 0.3 is not safe either
        ({"min_top1": 0.5}, (0.0, 1.0)),
        ({"max_accuracy_drop": 0.11}, (0.3, 1.0)),
        ({"max_accuracy_drop": 0.0, "min_eta": 0.7, "max_eta": 0.9}, (0.7, 0.9)),
    ],
)
def test_accuracy_becomes_bounds(arguments, bounds) -> None:
    goal = BudgetGoal(ms=5, **arguments).bounded(exit_record(curve=CURVE))
    assert (goal.min_eta, goal.max_eta) == bounds


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"min_top1": 0.83}, "the most in the calibration is 82.0%"),
        ({"min_top1": 0.8, "max_eta": 0.5}, "needs an eta from 0.6 to 1"),
    ],
)
def test_accuracy_that_cannot_be_kept(arguments, says) -> None:
    with pytest.raises(ConfigError, match=says):
        BudgetGoal(ms=5, **arguments).bounded(exit_record(curve=CURVE))


@pytest.mark.parametrize("value", ["x", 10**400, float("nan"), [0.5], True, b"x"])
@pytest.mark.parametrize(
    "name", ["ms", "fps", "min_eta", "max_eta", "min_top1", "max_accuracy_drop", "hysteresis"]
)
def test_what_is_no_number_in_range_is_refused(name, value) -> None:
    goal = {name: value} if name in ("ms", "fps") else {"ms": 5, name: value}
    with pytest.raises(ConfigError, match=r"(is|budget is|eta is) "):
        BudgetGoal(**goal)


def test_numbers_of_any_kind_become_floats() -> None:
    numbers: Any = {"fps": Fraction(61, 2), "hysteresis": np.float32(0.5)}
    goal = BudgetGoal(**numbers)
    assert (str(goal), goal.hysteresis) == ("30.5 pictures a second", 0.5)


def test_a_goal_without_an_accuracy_keeps_its_bounds() -> None:
    goal = BudgetGoal(fps=30, min_eta=0.2, max_eta=0.9)
    assert goal.bounded(None) is goal
    assert str(goal) == "30 pictures a second"
    assert str(BudgetGoal(ms=2.5)) == "2.5 ms a picture"
