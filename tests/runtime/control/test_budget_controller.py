from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.records import CalibrationPoint
from sacvit_deploy.runtime.control.budget import BudgetWarning
from sacvit_deploy.runtime.control.budget_controller import (
    MovingAverage,
    RecentConfidences,
    StageCosts,
)
from sacvit_deploy.runtime.pipeline import Pipeline
from tests.exit_records import exit_record
from tests.fake_machine import FRAME, Machine, classify
from tests.fakes import DENSE, fake_manifest, fake_opened

# With confidences of density 2c, eta refines a share of eta^2; 2 ms and 6 ms cost 2 + 6 eta^2.
GOAL_MS = 5.0
SLOWER_GOAL_MS = 8.0


def expected_ms(machine: Machine, eta: float) -> float:
    return machine.early_ms + machine.refine_ms * eta**2


def spent_ms(machine: Machine, pipeline: Pipeline, frames: int) -> float:
    start = machine.now_s
    classify(pipeline, frames)
    return (machine.now_s - start) * 1e3 / frames


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_machine_that_slows_down_is_followed_within_50_frames(seed, noise) -> None:
    machine = Machine(seed)
    machine.noise = noise
    pipeline = machine.pipeline(eta=0.2).with_budget(ms=SLOWER_GOAL_MS / 1.1)
    classify(pipeline, 400)
    before = pipeline.eta
    machine.early_ms, machine.refine_ms = 4.0, 12.0
    assert expected_ms(machine, before) > 1.4 * SLOWER_GOAL_MS / 1.1
    classify(pipeline, 50)
    etas = []
    start = machine.now_s
    for _ in range(300):
        classify(pipeline, 1)
        etas.append(pipeline.eta)
    assert (machine.now_s - start) * 1e3 / 300 == pytest.approx(SLOWER_GOAL_MS / 1.1, rel=0.1)
    close = [expected_ms(machine, eta) for eta in etas]
    # The quantile is that of 400 pictures; at its worst it is a little more than 10 % off.
    assert np.mean(np.abs(np.array(close) * 1.1 / SLOWER_GOAL_MS - 1) <= 0.1) > 0.85
    assert pipeline.budget.state == "holding"


@pytest.mark.parametrize("batch_size", [4, 8])
def test_batches_hold_the_same_goal(batch_size) -> None:
    machine = Machine(3)
    machine.noise = 0.1
    pipeline = machine.pipeline().with_budget(ms=GOAL_MS)
    list(pipeline.stream([FRAME] * 400, batch_size=batch_size))
    machine.early_ms, machine.refine_ms = 3.0, 9.0
    list(pipeline.stream([FRAME] * 48, batch_size=batch_size))
    start = machine.now_s
    pipeline([FRAME] * 400, batch_size=batch_size)
    assert (machine.now_s - start) * 1e3 / 400 == pytest.approx(GOAL_MS, rel=0.1)


def test_a_machine_that_recovers_gets_its_accuracy_back() -> None:
    machine = Machine(1, early_ms=8.0, refine_ms=24.0)
    pipeline = machine.pipeline().with_budget(ms=GOAL_MS)
    with pytest.warns(BudgetWarning):
        classify(pipeline, 100)
    assert pipeline.budget.refine_fraction == 0
    machine.early_ms, machine.refine_ms = 2.0, 6.0
    classify(pipeline, 100)
    assert pipeline.budget.state == "holding"
    assert spent_ms(machine, pipeline, 300) == pytest.approx(GOAL_MS, rel=0.1)


def test_a_harder_scene_is_followed() -> None:
    machine = Machine(2)
    pipeline = machine.pipeline().with_budget(ms=GOAL_MS)
    classify(pipeline, 400)
    easy = pipeline.eta
    machine.draw = lambda count: machine.generator.beta(2, 4, count)
    classify(pipeline, 100)
    assert pipeline.eta < easy - 0.2
    assert spent_ms(machine, pipeline, 400) == pytest.approx(GOAL_MS, rel=0.1)


def test_eta_does_not_flutter() -> None:
    def moves(hysteresis: float) -> int:
        machine = Machine(4)
        machine.noise = 0.1
        pipeline = machine.pipeline().with_budget(ms=GOAL_MS, hysteresis=hysteresis)
        classify(pipeline, 300)
        etas = []
        for _ in range(300):
            classify(pipeline, 1)
            etas.append(pipeline.eta)
        return int((np.diff(etas) != 0).sum())

    assert moves(0.03) < 15 < moves(0.0)


def test_one_slow_frame_moves_little() -> None:
    machine = Machine(5)
    pipeline = machine.pipeline().with_budget(ms=GOAL_MS)
    classify(pipeline, 400)
    before = pipeline.budget
    machine.early_ms = 200.0
    classify(pipeline, 1)
    machine.early_ms = 2.0
    assert pipeline.budget.early_ms < 1.2 * before.early_ms
    classify(pipeline, 50)
    assert pipeline.budget.eta == pytest.approx(before.eta, abs=0.05)


def test_a_goal_out_of_reach_is_said_once_and_the_stream_goes_on() -> None:
    machine = Machine(6)
    pipeline = machine.pipeline().with_budget(ms=1.0)
    with pytest.warns(BudgetWarning, match=r"1 ms a picture cannot be held.*costs 2 ms") as caught:
        results = classify(pipeline, 500)
    assert len(caught) == 1
    assert len(results) == 500
    assert pipeline.budget.state == "over"
    assert pipeline.eta == 0
    assert {result.stage for result in results[100:]} == {"early_exit"}


def test_an_easy_goal_leaves_time_to_spare() -> None:
    pipeline = Machine().pipeline(eta=0.1).with_budget(ms=50.0)
    classify(pipeline, 100)
    assert pipeline.budget.state == "spare"
    assert pipeline.eta == 1
    bounded = Machine().pipeline(eta=0.1).with_budget(ms=50.0, max_eta=0.7)
    classify(bounded, 100)
    assert bounded.eta == 0.7


def test_a_frame_rate_counts_what_prepares_the_frames(monkeypatch) -> None:
    machine = Machine(7)
    plain = machine.pipeline()
    pipeline = plain.with_budget(fps=125)
    prepare = pipeline.preprocess

    def slow(source):
        machine.now_s += 3e-3
        return prepare(source)

    monkeypatch.setattr(pipeline, "preprocess", slow)
    classify(pipeline, 300)
    assert pipeline.budget.goal_ms == pytest.approx(8 - 3)
    assert spent_ms(machine, pipeline, 400) == pytest.approx(8, rel=0.1)
    found = pipeline.stats.snapshot().preprocess
    assert found is not None
    assert found.latency_ms_mean == pytest.approx(3)


def test_sessions_are_shared_and_everything_else_is_not() -> None:
    plain = Machine().pipeline(eta=0.9)
    pipeline = plain.with_budget(ms=2.5)
    assert isinstance(pipeline, Pipeline)
    assert pipeline._opened is plain._opened
    classify(pipeline, 60)
    assert pipeline.eta < 0.9 == plain.eta
    assert plain.stats.snapshot().pictures == 0
    assert pipeline.stats.snapshot().pictures == 60
    assert json.loads(json.dumps(pipeline.budget.to_dict()))["state"] == "holding"


def test_nothing_moves_until_something_is_known() -> None:
    pipeline = Machine().pipeline(eta=0.4).with_budget(ms=2.5)
    classify(pipeline, 19)
    assert (pipeline.budget.state, pipeline.eta) == ("learning", 0.4)
    first = Machine().pipeline(eta=0.4).with_budget(ms=2.5)
    first([FRAME] * 32)
    assert (first.budget.state, first.eta) == ("learning", 0.4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "ms=None and fps=None"),
        ({"ms": 1, "fps": 1}, "Give one of them"),
        ({"ms": 0}, "above 0"),
        ({"fps": float("nan")}, "above 0"),
        ({"ms": 5, "min_eta": 0.6, "max_eta": 0.5}, "no larger"),
        ({"ms": 5, "min_eta": -1}, "eta"),
        ({"ms": 5, "hysteresis": 1}, "hysteresis"),
        ({"ms": 5, "min_top1": 0.5, "max_accuracy_drop": 0.1}, "at most one"),
        ({"ms": 5, "min_top1": 50}, "share from 0 to 1"),
        ({"ms": 5, "min_top1": 0.5}, "sacvit-deploy calibrate"),
    ],
)
def test_goals_that_cannot_be(arguments, says) -> None:
    with pytest.raises(ConfigError, match=says):
        Machine().pipeline().with_budget(**arguments)


def test_an_eta_cannot_be_given_to_a_budget() -> None:
    pipeline = Machine().pipeline().with_budget(ms=5)
    for use in (
        lambda: pipeline(FRAME, eta=0.5),
        lambda: pipeline.stream([FRAME], eta=0.5),
        lambda: setattr(pipeline, "eta", 0.5),
    ):
        with pytest.raises(ConfigError, match="budget moves it"):
            use()


def test_one_stage_has_nothing_to_move() -> None:
    with pytest.raises(ConfigError, match="one stage"):
        Pipeline(fake_manifest(DENSE), fake_opened(DENSE)).with_budget(ms=5)


CURVE = tuple(
    CalibrationPoint(eta, top1, 1 - eta, 1.0, 1.0, 1.0)
    for eta, top1 in ((0.0, 0.6), (0.3, 0.7), (0.5, 0.69), (0.6, 0.8), (0.8, 0.82), (1.0, 0.8))
)


def test_the_accuracy_comes_before_the_goal() -> None:
    machine = Machine(8)
    pipeline = machine.pipeline(exit_record(curve=CURVE)).with_budget(ms=3, min_top1=0.8)
    with pytest.warns(BudgetWarning, match="allow a lower min_eta or accuracy"):
        classify(pipeline, 200)
    assert pipeline.budget.state == "over"
    assert pipeline.eta == 0.6
    assert pipeline.budget.expected_ms > 3.5


def test_warnings_as_errors_come_once() -> None:
    pipeline = Machine().pipeline().with_budget(ms=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BudgetWarning):
            classify(pipeline, 100)
        classify(pipeline, 100)


def test_the_threshold_for_a_share() -> None:
    recent = RecentConfidences()
    recent.add([0.9, 0.1, 0.5, 0.5, 0.7])
    assert recent.eta_for_share(-0.1) == 0
    assert recent.eta_for_share(1.0) == 1
    assert recent.eta_for_share(0.1) == pytest.approx(0.05)
    assert recent.eta_for_share(0.2) == pytest.approx(0.3)
    assert recent.eta_for_share(0.4) == pytest.approx(0.3)  # equal ones stay together
    assert recent.eta_for_share(0.6) == pytest.approx(0.6)
    for share in np.linspace(0, 0.99, 34):
        assert recent.share_refined(recent.eta_for_share(share), ">") <= share
        assert recent.share_refined(recent.eta_for_share(share), ">=") <= share
    assert recent.share_refined(0.5, ">") == 0.6
    assert recent.share_refined(0.5, ">=") == 0.2
    assert recent.share_refined(1.0, ">=") == 1


def test_only_the_last_confidences_count() -> None:
    recent = RecentConfidences()
    recent.add([0.1] * 400)
    recent.add([0.9] * 100)
    assert len(recent) == 400
    assert recent.share_refined(0.5, ">") == 0.75
    recent.forget_another_scene(0.5)
    assert len(recent) == 50
    assert recent.share_refined(0.5, ">") == 0
    recent.forget_another_scene(0.5)
    assert len(recent) == 50


def test_a_moving_average_is_steady_and_still_quick() -> None:
    generator = np.random.default_rng(0)
    average = MovingAverage()
    for value in generator.normal(1, 0.1, 100):
        average.add(value)
    steady = []
    for value in generator.normal(1, 0.1, 300):
        average.add(value)
        steady.append(average.value)
    assert np.std(steady) < 0.03
    for value in generator.normal(2, 0.1, 25):
        average.add(value)
    assert average.value == pytest.approx(2, rel=0.1)


def test_the_first_run_of_a_session_does_not_count() -> None:
    costs = StageCosts(2.5)
    costs.add_early(500.0, 1)
    costs.add_early(2.0, 1)
    assert (costs.early_ms, costs.refine_ms) == (2.0, 5.0)
    costs.add_refine(900.0, 2.0, 1)
    costs.add_refine(8.0, 2.0, 1)
    assert costs.refine_ms == 8.0
