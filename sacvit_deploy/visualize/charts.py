"""The charts of an evaluation and of a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from sacvit_deploy.evaluation.compared import Compared
from sacvit_deploy.evaluation.evaluate import Evaluation
from sacvit_deploy.evaluation.exit_calibration import BundleCalibration
from sacvit_deploy.evaluation.exit_sweep import OperatingPoint
from sacvit_deploy.evaluation.exit_threshold import Calibration
from sacvit_deploy.visualize.canvas import (
    Canvas,
    Drawing,
    Ink,
    Pen,
    Point,
    Role,
    Type,
    outline,
)
from sacvit_deploy.visualize.plot import Axis, Mark, Plot

Cost = Literal["macs_mean_g", "latency_ms_mean"]
"""A mean cost of a picture, as evaluations name it."""

_MACS = "mean cost of a picture (G multiply-accumulates)"

MOST_CLASSES_DRAWN = 200
"""A confusion matrix of more classes is a grey square."""

_MOST_CLASSES_NAMED = 60
_MOST_ROWS_NAMED = 6
_CELL = 14
_NAME_LETTERS = 24
_CURVE, _IDEAL = Pen("ink", 2.5), Pen("quiet", 1.5, dashed=True)
_BAND = Ink("ink", 0.13)
_BANDS = (Ink("early"), Ink("early", 0.38), Ink("late", 0.38), Ink("late"))


class _Marked(NamedTuple):
    """A point to mark in a chart of accuracy."""

    point: OperatingPoint | Compared
    colour: Role
    name: str
    above: bool = False
    named: bool = True


def accuracy_against(cost: Cost, evaluation: Evaluation, compared: Sequence[Compared]) -> Plot:
    """Top-1 against a mean cost: the curve, both ends, the rows, and other evaluations.

    All have their 95 % intervals. A dashed line marks the multiply-accumulates of the dense network
    that a two-stage one is compared with.
    """
    curve = evaluation.curve
    points: list[OperatingPoint | Compared] = [*curve, *evaluation.rows, *compared]
    dense = evaluation.macs_g["dense"] if cost == "macs_mean_g" and len(curve) > 1 else 0.0
    title = _MACS
    if cost == "latency_ms_mean":
        title = f"mean latency of a picture (ms, batch {evaluation.setting.batch_size})"
    ends = [end for point in points for end in point.top1_interval]
    plot = Plot(
        Axis.around(title, [0.0, dense, *(getattr(point, cost) for point in points)]),
        Axis.around("top-1 accuracy", ends, percent=True),
        f"Top-1 accuracy against {title}",
    )
    if dense:
        plot.vertical(dense, f"dense, {dense:.3g} G")
    if len(curve) > 1:
        _draw_curve(plot, cost, curve)
        _mark(plot, cost, _Marked(curve[0], "early", "early exit alone"))
        _mark(plot, cost, _Marked(curve[-1], "late", "second stage alone", above=True))
    named = len(evaluation.rows) <= _MOST_ROWS_NAMED
    for row in evaluation.rows:
        _mark(plot, cost, _Marked(row, "ink", row_name(row), named=named))
    for each in compared:
        _mark(plot, cost, _Marked(each, "other", each.name, above=True))
    return plot


def _draw_curve(plot: Plot, cost: Cost, curve: Sequence[OperatingPoint]) -> None:
    """Draw the line of top-1 on the band of its intervals."""
    costs = [getattr(point, cost) for point in curve]
    low, high = zip(*(point.top1_interval for point in curve), strict=True)
    lower, upper = (list(zip(costs, ends, strict=True)) for ends in (low, high))
    plot.area(lower, upper, _BAND)
    plot.line([(x, point.top1) for x, point in zip(costs, curve, strict=True)], _CURVE)


def _mark(plot: Plot, cost: Cost, marked: _Marked) -> None:
    """Mark a point; many of them have neither names nor intervals, which the band shows."""
    point, colour, name, above, named = marked
    at = getattr(point, cost), point.top1
    low, high = point.top1_interval
    if named:
        plot.interval_upwards(at[0], (low, high), Pen(colour, 1.5))
    tip = f"{name}: {at[1]:.2%} correct ({low:.1%} to {high:.1%}) at {at[0]:.4g}"
    plot.dot(at, colour, Mark(name if named else "", tip, above))


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
    """Share of correct answers in each bin of the confidence, with its 95 % interval.

    The interval stands at the mean confidence of the bin: there the line of a network whose
    confidence equals its accuracy should cross it.
    """
    x_axis = Axis("confidence", 0, 1, percent=True)
    plot = Plot(x_axis, Axis("share of correct answers", 0, 1, True), "Reliability diagram")
    filled = [each for each in evaluation.reliability.bins if each.images]
    for each in filled:
        low, high = each.accuracy_interval
        tip = (
            f"{each.images} pictures, mean confidence {each.confidence:.1%}, "
            f"{each.accuracy:.1%} correct ({low:.1%} to {high:.1%})"
        )
        plot.bar(each.lower, each.upper, each.accuracy, Ink("early", 0.8), tip)
    for each in filled:
        plot.interval_upwards(each.confidence, each.accuracy_interval, Pen("ink", 1.5))
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
        Axis.around(_MACS, [*xs, *costs, cost or xs[0]]),
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
    plot.interval_across(costs, at[1], Pen("other", 2.0))
    plot.interval_upwards(at[0], shares, Pen("other", 2.0))
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
