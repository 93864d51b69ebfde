"""What a row says of its times."""

from __future__ import annotations

import dataclasses

import pytest

from sacvit_deploy.benchmark.rows import Measured
from sacvit_deploy.benchmark.timing import CallTime, summarize
from tests.benchmark.made_up_rows import FRESH, two_stage_row


def test_times_shares_and_factors() -> None:
    row = two_stage_row(early=8, refine=8, dense=40)
    found = row.to_dict()
    assert found["two_stage_ms_p50"] == 16
    assert found["images_per_s"] == 500
    assert found["speedup"] == 2.5
    assert (found["floor_ms"], found["floor_share"]) == (8, 0.5)
    assert (found["dense_floor_ms"], found["dense_floor_share"]) == (10, 0.25)
    assert found["best_speedup"] == 1.25
    assert (found["early_exit_floor_ms"], found["refine_floor_share"]) == (4, 0.5)
    assert found["refine_ms_per_image"] == 4
    assert found["overhead_share"] == 0


def test_two_stages_pay_up_to_a_share() -> None:
    row = two_stage_row(early=8, refine=8, dense=24)
    assert row.break_even_share == pytest.approx(0.5)  # (24 - 8) / (8 pictures of 4 ms)
    assert row.dense is not None
    assert row.ms_at(0.5) == pytest.approx(row.dense.summary.p50)
    slow = two_stage_row(early=8, refine=8, dense=4).break_even_share
    assert slow is not None
    assert slow < 0  # the early exit alone is slower


def test_what_was_not_measured_is_null() -> None:
    row = two_stage_row(dense=None)
    own = dataclasses.replace(row.own, floor=None)
    found = dataclasses.replace(row, own=own).to_dict()
    empty = ("dense_ms_p50", "speedup", "best_speedup", "break_even_share", "floor_ms")
    assert [found[key] for key in empty] == [None] * 5
    assert found["files"] is None


def test_one_stage_has_other_keys() -> None:
    summary = summarize([[CallTime(10, {"single": 9})]], 4)
    own = Measured(summary, None, FRESH)
    row = dataclasses.replace(two_stage_row(batch=4), has_two_stages=False, own=own)
    found = row.to_dict()
    assert (found["ms_p50"], found["ms_p95"], found["images_per_s"]) == (10, 10, 400)
    assert found["speedup"] == 4
    assert not {"sac_fraction", "two_stage_ms_p50", "early_exit_ms_p50"} & found.keys()
    assert row.ms_at(0.7) == 10
