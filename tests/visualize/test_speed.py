from __future__ import annotations

import dataclasses

from sacvit_deploy.visualize.speed import SpeedChart
from tests.benchmark.made_up_rows import benchmark_of, two_stage_row
from tests.fakes import SAC, fake_manifest


def test_bars_names_and_limits(tmp_path) -> None:
    rows = (two_stage_row(), two_stage_row(batch=32, dense=None))
    chart = SpeedChart(benchmark_of(rows, fake_manifest(SAC), tmp_path))
    svg = chart.svg()
    assert "batch 8, onnxruntime fp32, 1 thread" in svg
    assert "2.00, 2.50x" in svg  # 16 ms for 8 pictures, 40 for the dense network
    assert "5.00" in svg
    assert svg.count("0.50") == 1  # 16 ms for 32 pictures
    width, height = chart.size
    assert chart.image(1).size == (width, height)


def test_the_axis_holds_the_longest_limit(tmp_path) -> None:
    row = two_stage_row(dense=None)
    assert row.own.floor is not None
    slow = dataclasses.replace(row.own, floor=row.own.summary, summary=row.own.floor)
    bundle = benchmark_of((dataclasses.replace(row, own=slow),), fake_manifest(SAC), tmp_path)
    chart = SpeedChart(bundle)
    assert chart.axis.high == 2  # the limit, and not the 1 ms of the network
