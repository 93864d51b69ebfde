"""The charts of an evaluation and of a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sacvit_deploy.evaluation.evaluate import Compared, Evaluation
from sacvit_deploy.evaluation.exit_calibration import BundleCalibration
from sacvit_deploy.evaluation.exit_sweep import OperatingPoint
from sacvit_deploy.evaluation.exit_threshold import Calibration
from sacvit_deploy.visualize.canvas import Canvas, Drawing, Ink, Pen, Point, Type, outline
from sacvit_deploy.visualize.plot import Axis, Mark, Plot

Cost = Literal["macs_mean_g", "latency_ms_mean"]
"""A mean cost of a picture, as evaluations name it."""

_COSTS: dict[Cost, str] = {
    "macs_mean_g": "mean cost of a picture (G multiply-accumulates)",
    "latency_ms_mean": "mean latency of a picture (ms, batch 1)",
}

MOST_CLASSES_DRAWN = 200
"""A confusion matrix of more classes is a grey square."""

_MOST_CLASSES_NAMED = 60
_MOST_ROWS_NAMED = 6
_CELL = 14
_NAME_LETTERS = 24
_CURVE, _IDEAL = Pen("ink", 2.5), Pen("quiet", 1.5, dashed=True)
_BANDS = (Ink("early"), Ink("early", 0.38), Ink("late", 0.38), Ink("late"))


def accuracy_against(cost: Cost, evaluation: Evaluation, compared: Sequence[Compared]) -> Plot:
    """Top-1 against a mean cost: the curve, both ends, the rows, and other evaluations.

    A dashed line marks the multiply-accumulates of the dense network that a two-stage one is
    compared with.
    """

    def place(point: OperatingPoint | Compared) -> Point:
        return getattr(point, cost), point.top1

    curve = [place(point) for point in evaluation.curve]
    dense = evaluation.macs_g["dense"] if cost == "macs_mean_g" and len(curve) > 1 else 0.0
    xs, ys = zip(*curve, *map(place, evaluation.rows), *map(place, compared), strict=True)
    title = _COSTS[cost]
    y_axis = Axis.around("top-1 accuracy", ys, percent=True)
    plot = Plot(Axis.around(title, [0.0, dense, *xs]), y_axis, f"Top-1 accuracy against {title}")
    if dense:
        plot.vertical(dense, f"dense, {dense:.3g} G")
    if len(curve) > 1:
        plot.line(curve, _CURVE)
        plot.dot(curve[0], "early", _mark("early exit alone", curve[0]))
        plot.dot(curve[-1], "late", _mark("second stage alone", curve[-1], above=True))
    named = len(evaluation.rows) <= _MOST_ROWS_NAMED
    for row in evaluation.rows:
        plot.dot(place(row), "ink", _mark(row_name(row), place(row), named=named))
    for each in compared:
        plot.dot(place(each), "other", _mark(each.name, place(each), above=True))
    return plot


def _mark(name: str, at: Point, *, above: bool = False, named: bool = True) -> Mark:
    return Mark(name if named else "", f"{name}: {at[1]:.2%} correct at {at[0]:.4g}", above)


def row_name(row: OperatingPoint) -> str:
    """Name of a point in charts and tables."""
    if row.source is None:
        return "one stage"
    return f"eta {row.eta:.4g}{' (of fp32)' if row.source == 'fp32' else ''}"


def shares_by_stage(evaluation: Evaluation) -> Plot:
    """Where pictures leave as the threshold rises, and whether they are correct (Fig. 4)."""
    bands: list[list[Point]] = [[], [], [], [], []]
    for point in evaluation.curve:
        early, correct = point.early_exit_fraction, point.early_right_fraction
        late_wrong = 1 - early - (point.top1 - correct)
        for band, height in zip(bands, (0, correct, early, early + late_wrong, 1), strict=True):
            band.append((point.eta, height))
    x_axis = Axis("exit threshold eta", 0, 1)
    plot = Plot(x_axis, Axis("share of pictures", 0, 1, True), "Share of pictures by stage")
    for lower, upper, ink in zip(bands, bands[1:], _BANDS, strict=False):
        plot.area(lower, upper, ink)
    named = len(evaluation.rows) <= _MOST_ROWS_NAMED
    for row in evaluation.rows:
        # At another temperature the same eta would part other pictures.
        if row.temperature == evaluation.rows[0].temperature:
            plot.vertical(row.eta, row_name(row) if named else "")
    return plot


def reliability_diagram(evaluation: Evaluation) -> Plot:
    """Share of correct answers in each bin of the confidence."""
    x_axis = Axis("confidence", 0, 1, percent=True)
    plot = Plot(x_axis, Axis("share of correct answers", 0, 1, True), "Reliability diagram")
    for each in evaluation.reliability.bins:
        if each.images:
            shares = f"mean confidence {each.confidence:.1%}, {each.accuracy:.1%} correct"
            tip = f"{each.images} pictures, {shares}"
            plot.bar(each.lower, each.upper, each.accuracy, Ink("early", 0.8), tip)
    plot.line([(0, 0), (1, 1)], _IDEAL)
    return plot


class ConfusionMatrix(Drawing):
    """Rows are true classes, columns the answers; the stronger, the larger the share of the row."""

    title = "Confusion matrix"

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._images = {row.class_index: row.images for row in evaluation.classes}
        shown = sorted({*self._images, *(entry.predicted for entry in evaluation.confusions)})
        self._place = {index: number for number, index in enumerate(shown)}
        names = [evaluation.labels[index] for index in shown if len(shown) <= _MOST_CLASSES_NAMED]
        self._names = [
            name if len(name) <= _NAME_LETTERS else name[: _NAME_LETTERS - 1] + "…"
            for name in names
        ]
        # Room for the names, if there are few enough to be read.
        self._margin = 16 + 6 * max(map(len, self._names)) if self._names else _CELL

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in units."""
        side = self._margin + (len(self._place) + 1) * _CELL
        return side, side

    def draw(self, canvas: Canvas) -> None:
        """Draw on a canvas of this size."""
        start, end = self._margin - 0.5, self.size[0] - _CELL - 0.5
        canvas.line(outline((start, start, end, end)), Pen("rule"))
        for number, name in enumerate(self._names):
            at = self._margin + number * _CELL
            canvas.text((self._margin - 5, at + 1), name, Type(10, "ink", "end"))
            canvas.text((at + 1, self._margin - 5), name, Type(10, "ink", turned=True))
        labels = self._evaluation.labels
        for entry in self._evaluation.confusions:
            images, of = entry.images, self._images[entry.true]
            x = self._margin + self._place[entry.predicted] * _CELL
            y = self._margin + self._place[entry.true] * _CELL
            true, taken = labels[entry.true], labels[entry.predicted]
            ink = Ink("early" if true == taken else "wrong", 0.12 + 0.88 * (images / of) ** 0.5)
            tip = f"{true}, taken for {taken}: {images} of {of} pictures"
            canvas.fill((x, y, x + _CELL - 1, y + _CELL - 1), ink, tip)


def exit_curve(found: BundleCalibration) -> Plot:
    """Top-1 against mean cost: all thresholds, the chosen one and its 95 % interval, the limit."""
    calibration = found.calibration
    chosen, title = calibration.chosen, f"Exit threshold for {calibration.goal}"
    costs, shares = (calibration.intervals[name] for name in ("macs_mean_g", "top1"))
    curve = [(point.macs_mean_g, point.top1) for point in calibration.curve]
    limit, cost, top1 = _limit(calibration)
    xs, ys = zip(*curve, strict=True)
    plot = Plot(
        Axis.around(_COSTS["macs_mean_g"], [*xs, *costs, cost or xs[0]]),
        Axis.around("top-1 (%)", [*ys, *shares, top1 or ys[0]], percent=True),
        title,
        (
            title,
            f"{found.precision} in {found.backend}, {calibration.images} pictures; "
            "the line joins all thresholds",
            f"eta {chosen.eta:.3f}: {chosen.top1:.1%}, {chosen.macs_mean_g:.3g} G, "
            f"{chosen.early_exit_fraction:.0%} exit early (bars: 95 % interval)",
        ),
    )
    if cost is not None:
        plot.vertical(cost, limit)
    if top1 is not None:
        plot.horizontal(top1, limit)
    plot.line(curve, _CURVE)
    at = (chosen.macs_mean_g, chosen.top1)
    plot.interval(costs, shares, at, "other")
    plot.dot(at, "other", Mark(f"eta {chosen.eta:.3f}"))
    plot.dot(curve[0], "early", Mark(f"early exit alone: {ys[0]:.1%}"))
    plot.dot(curve[-1], "late", Mark(f"second stage alone: {ys[-1]:.1%}", above=True))
    return plot


def _limit(calibration: Calibration) -> tuple[str, float | None, float | None]:
    """Name of what the goal allows, and its cost or top-1 where it is on one of the axes."""
    goal = calibration.goal
    if goal.kind == "max_accuracy_drop":
        least = calibration.reference_top1 - goal.value
        return f"least top-1: {least:.1%}", None, least
    if goal.kind == "target_macs":
        return f"largest mean cost: {goal.value:g} G", goal.value, None
    if goal.kind == "target_exit_fraction":
        early, late = calibration.macs_g
        return f"{goal.value:.0%} exit early", early + (1 - goal.value) * (late - early), None
    return "", None, None
