"""What is advised for a goal."""

from __future__ import annotations

import dataclasses

import pytest

from sacvit_deploy.benchmark.advice import Goal, advise
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.records import CalibrationPoint
from tests.benchmark.made_up_rows import benchmark_of, two_stage_row
from tests.exit_records import exit_record
from tests.fakes import SAC, fake_manifest

# eta, top-1, share of early exits
CURVE = ((0.0, 0.5, 1.0), (0.4, 0.6, 0.75), (1.0, 0.7, 0.0))


def calibrated(precision="fp32"):
    points = tuple(CalibrationPoint(eta, top1, early, 1.0, 1.0, 1.0) for eta, top1, early in CURVE)
    record = dataclasses.replace(
        exit_record(), precision=precision, eta=0.4, early_exit_fraction=0.75, curve=points
    )
    return dataclasses.replace(fake_manifest(SAC), exit_calibrations=(record,))


def test_the_most_accurate_that_meets_the_goal(tmp_path) -> None:
    # 8 ms for the first stage and 4 for each refined picture of 8.
    found = benchmark_of((two_stage_row(),), calibrated(), tmp_path)
    wanted = {100.0: (1.0, 0.7, 40.0), 16.5: (0.4, 0.6, 16.0), 10.0: (0.0, 0.5, 8.0)}
    for goal, expected in wanted.items():
        setting = advise(found, Goal(latency_ms=goal)).setting
        assert setting is not None
        assert (setting.eta, setting.top1, setting.batch_ms) == expected
    missed = advise(found, Goal(latency_ms=5))
    assert missed.setting is None
    assert missed.nearest is not None
    assert missed.nearest.batch_ms == 8


def test_a_goal_in_pictures_per_second(tmp_path) -> None:
    found = benchmark_of((two_stage_row(),), calibrated(), tmp_path)
    setting = advise(found, Goal(images_per_s=400)).setting
    assert setting is not None
    assert setting.eta == 0.4  # 500 images/s
    assert advise(found, Goal(images_per_s=1001)).setting is None


def test_without_a_goal_accuracy_counts_and_then_speed(tmp_path) -> None:
    rows = (two_stage_row(), two_stage_row(early=4, refine=4))
    setting = advise(benchmark_of(rows, calibrated(), tmp_path), Goal()).setting
    assert setting is not None
    assert (setting.top1, setting.batch_ms) == (0.7, 20)


def test_a_precision_that_is_not_calibrated_comes_last(tmp_path) -> None:
    rows = (two_stage_row(), two_stage_row(early=1, refine=1, precision="int8"))
    found = benchmark_of(rows, calibrated(), tmp_path)
    slow = advise(found, Goal(latency_ms=100)).setting
    fast = advise(found, Goal(latency_ms=3)).setting
    assert slow is not None
    assert fast is not None
    assert (slow.row.precision, fast.row.precision, fast.top1) == ("fp32", "int8", None)


def test_fewer_tokens_where_the_calibrated_threshold_is_too_slow(tmp_path) -> None:
    found = benchmark_of((two_stage_row(),), calibrated(), tmp_path)
    enough = advise(found, Goal(latency_ms=16.5))
    assert (enough.alpha, enough.other_alpha) == (0.5, None)
    fewer = advise(found, Goal(latency_ms=15.5)).other_alpha
    assert fewer is not None
    assert 0 < fewer < 0.5
    assert advise(found, Goal(latency_ms=8.01)).other_alpha is None


def test_without_a_calibration_the_measured_share_counts(tmp_path) -> None:
    advice = advise(benchmark_of((two_stage_row(),), fake_manifest(SAC), tmp_path), Goal())
    assert not advice.is_calibrated
    assert advice.setting is not None
    assert advice.setting.to_dict()["refine_fraction"] == 0.25
    document = advice.to_dict()
    assert document["goal"] == "none"
    assert document["break_even"][0]["share"] == 1.0


@pytest.mark.parametrize("values", [(0, None), (None, -1), (float("nan"), None), (5, 5)])
def test_goals_that_cannot_be(values) -> None:
    with pytest.raises(ConfigError):
        Goal(*values)
