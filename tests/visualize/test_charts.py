from __future__ import annotations

import dataclasses
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from sacvit_deploy.evaluation.compared import Compared
from sacvit_deploy.evaluation.exit_calibration import BundleCalibration
from sacvit_deploy.evaluation.exit_threshold import ExitGoal, ThresholdSearch, find_threshold
from sacvit_deploy.visualize.canvas import ROLES
from sacvit_deploy.visualize.charts import (
    ConfusionMatrix,
    accuracy_against,
    exit_curve,
    reliability_diagram,
    shares_by_stage,
)
from tests.evaluation.answers_made_up import population
from tests.evaluation.evaluations import fake_evaluation
from tests.fakes import DENSE, SAC
from tests.visualize.surface import Area, Dot, Fill, Line, Surface

CHARTS = {
    "macs": lambda found: accuracy_against("macs_mean_g", found, ()),
    "latency": lambda found: accuracy_against("latency_ms_mean", found, ()),
    "shares": shares_by_stage,
    "reliability": reliability_diagram,
    "confusions": ConfusionMatrix,
}


def calibrated(goal: ExitGoal) -> BundleCalibration:
    found = find_threshold(population(300, seed=1), SAC, ThresholdSearch(goal, resamples=100))
    return BundleCalibration(found, "fp32", "onnxruntime", written=False)


@pytest.mark.parametrize("chart", CHARTS)
def test_everything_drawn_lies_inside_its_chart(chart):
    drawing = CHARTS[chart](fake_evaluation(etas=(0.0, 0.4, 1.0)))
    width, height = drawing.size
    surface = Surface(drawing)
    points = [point for part in surface.of(Line) + surface.of(Area) for point in part.points]
    points += [dot.centre for dot in surface.of(Dot)]
    points += [corner for fill in surface.of(Fill) for corner in (fill.box[:2], fill.box[2:])]
    assert points
    for x, y in points:
        assert 0 <= x <= width
        assert 0 <= y <= height


def test_both_ends_every_row_and_other_evaluations_are_marked():
    found = fake_evaluation(etas=(0.4, 0.6))
    here = Compared("dense fp32", 0.5, 0.001, 1.0, found.data_sha256, 100)
    for chart, cost in (
        (accuracy_against("macs_mean_g", found, [here]), "at 0.001"),
        (accuracy_against("latency_ms_mean", found, [here]), "at 1"),
    ):
        surface = Surface(chart)
        marks = {dot.tip.split(":")[0]: dot for dot in surface.of(Dot) if dot.tip}
        colours = {name: dot.ink.colour for name, dot in marks.items()}
        assert colours == {
            "early exit alone": "early",
            "second stage alone": "late",
            "eta 0.4": "ink",
            "eta 0.6": "ink",
            "dense fp32": "other",
        }
        assert marks["dense fp32"].tip == f"dense fp32: 50.00% correct (40.4% to 59.6%) {cost}"
        assert set(colours) <= set(surface.words().splitlines())


def test_many_rows_have_tips_and_no_names():
    found = fake_evaluation(etas=tuple(np.linspace(0.1, 0.9, 9)))
    surface = Surface(accuracy_against("macs_mean_g", found, ()))
    assert sum(dot.tip.startswith("eta ") for dot in surface.of(Dot)) == 9
    assert "eta " not in surface.words()


def test_one_stage_is_a_point_with_its_interval():
    surface = Surface(accuracy_against("macs_mean_g", fake_evaluation(DENSE), ()))
    (point,) = (dot for dot in surface.of(Dot) if dot.tip)
    assert point.tip.startswith("one stage: ")
    upwards, *_ = (line for line in surface.of(Line) if line.pen.width == 1.5)
    assert {x for x, _ in upwards.points} == {point.centre[0]}
    assert upwards.points[0][1] < point.centre[1] < upwards.points[1][1]


def test_the_band_holds_the_curve_and_the_axis_holds_the_band():
    found = fake_evaluation()
    surface = Surface(accuracy_against("macs_mean_g", found, ()))
    (band,) = surface.of(Area)
    (curve,) = (line for line in surface.of(Line) if len(line.points) > 2)
    count = len(found.curve)
    upper, lower = band.points[:count], band.points[: count - 1 : -1]
    for above, at, below in zip(upper, curve.points, lower, strict=True):
        assert above[0] == at[0] == below[0]
        assert 14 <= above[1] < at[1] < below[1] <= 300


def test_the_axis_of_a_latency_names_the_batch():
    found = fake_evaluation()
    setting = dataclasses.replace(found.setting, batch_size=8)
    found = dataclasses.replace(found, setting=setting)
    assert "ms, batch 8" in Surface(accuracy_against("latency_ms_mean", found, ())).words()


def test_the_bands_add_up_to_all_pictures():
    found = fake_evaluation(etas=(0.4,))
    surface = Surface(shares_by_stage(found))
    assert [area.ink.colour for area in surface.of(Area)] == ["early", "early", "late", "late"]
    for below, above in zip(surface.of(Area), surface.of(Area)[1:], strict=False):
        points = len(found.curve)
        assert below.points[:points] == above.points[: points - 1 : -1]


def test_at_another_temperature_a_threshold_is_not_drawn():
    found = fake_evaluation(etas=(0.4, 0.6))
    other = dataclasses.replace(found.rows[1], temperature=2.0)
    words = Surface(
        shares_by_stage(dataclasses.replace(found, rows=(found.rows[0], other)))
    ).words()
    assert "eta 0.4" in words
    assert "eta 0.6" not in words


def test_each_bar_has_its_interval_at_the_mean_confidence():
    found = fake_evaluation()
    surface = Surface(reliability_diagram(found))
    lines = [line for line in surface.of(Line) if line.pen.width == 1.5 and not line.pen.dashed]
    upwards = [line.points for line in lines if line.points[0][0] == line.points[1][0]]
    filled = [each for each in found.reliability.bins if each.images]
    for points, each in zip(upwards, filled, strict=True):
        low, high = each.accuracy_interval
        assert low <= each.accuracy <= high
        assert points[1][1] - points[0][1] == pytest.approx(286 * (high - low), abs=0.1)
        assert points[0][0] == pytest.approx(62 + 434 * each.confidence, abs=0.1)


def test_bars_are_as_high_as_the_accuracy():
    found = fake_evaluation()
    filled = [each for each in found.reliability.bins if each.images]
    bars = Surface(reliability_diagram(found)).of(Fill)
    assert len(bars) == len(filled)
    for bar, each in zip(bars, filled, strict=True):
        assert bar.box[3] - bar.box[1] == pytest.approx(286 * each.accuracy, abs=0.1)
        assert f"{each.accuracy:.1%} correct" in bar.tip


def test_the_matrix_has_a_cell_for_each_pair_in_its_place():
    found = fake_evaluation()
    surface = Surface(ConfusionMatrix(found))
    cells = surface.of(Fill)
    assert len(cells) == len(found.confusions)
    for cell, entry in zip(cells, found.confusions, strict=True):
        is_diagonal = cell.box[0] == cell.box[1]
        assert is_diagonal == (entry.true == entry.predicted)
        assert cell.ink.colour == ("early" if is_diagonal else "wrong")
        assert cell.tip.endswith("pictures")
    assert set(surface.words().splitlines()) == set(found.labels)


def test_a_large_matrix_has_no_names_and_long_names_are_cut():
    many = fake_evaluation(SAC.replace(num_classes=100), images=300)
    assert Surface(ConfusionMatrix(many)).words() == ""
    found = fake_evaluation()
    found = dataclasses.replace(found, labels=tuple(f"{n} " + "long" * 20 for n in range(7)))
    assert all(
        len(word) == 24 and word.endswith("…")
        for word in Surface(ConfusionMatrix(found)).words().splitlines()
    )


@pytest.mark.parametrize(
    ("goal", "limit"),
    [
        (ExitGoal(value=0.02), "least top-1: "),
        (ExitGoal("target_macs", 1.0), "largest mean cost: 1 G"),
        (ExitGoal("target_exit_fraction", 0.6), "60% exit early"),
        (ExitGoal("target_latency_ms", 5), None),
    ],
    ids=str,
)
def test_everything_is_in_the_picture(goal, limit, tmp_path):
    found = calibrated(goal)
    file = tmp_path / "curve.svg"
    exit_curve(found).save(file)
    text = file.read_text(encoding="utf-8")
    chosen = found.calibration.chosen
    for part in (
        f"Exit threshold for {goal}",
        "fp32 in onnxruntime, 300 pictures",
        "mean cost of a picture (G multiply-accumulates)",
        "top-1 (%)",
        f"eta {chosen.eta:.3f}: {chosen.top1:.1%}",
        "95 % interval",
        "early exit alone: ",
        "second stage alone: ",
        limit or "",
    ):
        assert part in text


def test_the_chosen_point_has_its_interval():
    found = calibrated(ExitGoal(value=0.02))
    surface = Surface(exit_curve(found))
    (chosen,) = (dot for dot in surface.of(Dot) if dot.ink.colour == "other")
    across, upwards, *_ = (line for line in surface.of(Line) if line.pen.colour == "other")
    assert across.points[0][0] < chosen.centre[0] < across.points[1][0]
    assert upwards.points[0][1] < chosen.centre[1] < upwards.points[1][1]
    (curve,) = (line for line in surface.of(Line) if len(line.points) > 2)
    assert chosen.centre in curve.points
    (limit,) = (line for line in surface.of(Line) if line.pen.dashed)
    assert limit.points[0][1] == limit.points[1][1] >= chosen.centre[1]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<svg xmlns")])
def test_the_same_calibration_gives_the_same_file(suffix, start, tmp_path):
    found = calibrated(ExitGoal(value=0.02))
    files = [tmp_path / f"{name}{suffix}" for name in ("one", "two")]
    for file in files:
        exit_curve(found).save(file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes().startswith(start)


def test_pixels_and_vectors_show_the_same_points(tmp_path):
    drawing = exit_curve(calibrated(ExitGoal(value=0.02)))
    root = ET.fromstring(drawing.svg())
    pixels = drawing.image(2)
    assert isinstance(pixels, Image.Image)
    shown = 0
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        colour = circle.get("fill")
        if colour != ROLES["card"][0]:
            at = (round(2 * float(circle.attrib["cx"])), round(2 * float(circle.attrib["cy"])))
            assert "#{:02x}{:02x}{:02x}".format(*np.asarray(pixels)[at[1], at[0]]) == colour
            shown += 1
    assert shown == 3
