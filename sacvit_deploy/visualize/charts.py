"""The charts of an evaluation."""

from __future__ import annotations

import io
from html import escape
from typing import TYPE_CHECKING, Any

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.files import check_output, write_output
from sacvit_deploy.libraries import require
from sacvit_deploy.visualize.plot import Axis, Mark, Plot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sacvit_deploy.evaluation.evaluate import Compared, Evaluation
    from sacvit_deploy.evaluation.exit_calibration import BundleCalibration
    from sacvit_deploy.evaluation.exit_sweep import OperatingPoint
    from sacvit_deploy.evaluation.exit_threshold import Calibration
    from sacvit_deploy.visualize.plot import Point


MOST_CLASSES_DRAWN = 200
"""A confusion matrix of more classes is a grey square."""

_MOST_CLASSES_NAMED = 60
_MOST_ROWS_NAMED = 6
_CELL = 14
_NAME_LETTERS = 24


def accuracy_against_macs(evaluation: Evaluation, compared: Sequence[Compared]) -> str:
    """Top-1 against mean cost: the curve, what was asked for, and where the dense network is."""
    others = [(each.name, (each.macs_mean_g, each.top1)) for each in compared]
    two_stage = "refine" in evaluation.macs_g
    dense = evaluation.macs_g["dense"] if two_stage else None
    return _trade_off(
        evaluation,
        lambda point: point.macs_mean_g,
        "mean cost of a picture (G multiply-accumulates)",
        others,
        dense,
    )


def accuracy_against_latency(evaluation: Evaluation, compared: Sequence[Compared]) -> str:
    """Top-1 against mean latency at batch 1."""
    others = [(each.name, (each.latency_ms_mean, each.top1)) for each in compared]
    return _trade_off(
        evaluation,
        lambda point: point.latency_ms_mean,
        "mean latency of a picture (ms, batch 1)",
        others,
    )


def _trade_off(
    evaluation: Evaluation,
    cost: Callable[[OperatingPoint], float],
    title: str,
    others: Sequence[tuple[str, Point]],
    dense: float | None = None,
) -> str:
    def place(point: OperatingPoint) -> Point:
        return cost(point), point.top1

    curve = [place(point) for point in evaluation.curve]
    seen = curve + [place(row) for row in evaluation.rows] + [at for _, at in others]
    costs = [x for x, _ in seen] + ([] if dense is None else [dense])
    x_axis = Axis.around(title, [0.0, *costs])
    y_axis = Axis.around("top-1 accuracy", [y for _, y in seen], percent=True)
    plot = Plot(x_axis, y_axis, f"Top-1 accuracy against {title}")
    if dense is not None:
        plot.vertical(dense, f"dense, {dense:.3g} G")
    if len(curve) > 1:
        plot.line(curve, "mix")
        plot.dot(curve[0], "early", _mark("early exit alone", curve[0]))
        plot.dot(curve[-1], "late", _mark("second stage alone", curve[-1], above=True))
    named = len(evaluation.rows) <= _MOST_ROWS_NAMED
    for row in evaluation.rows:
        plot.dot(place(row), "mix", _mark(row_name(row), place(row), named=named))
    for name, at in others:
        plot.dot(at, "other", _mark(name, at, above=True))
    return plot.svg()


def row_name(row: OperatingPoint) -> str:
    """What a point is called in charts and tables."""
    if row.source is None:
        return "one stage"
    ending = " (of fp32)" if row.source == "fp32" else ""
    return f"eta {row.eta:.4g}{ending}"


def shares_by_stage(evaluation: Evaluation) -> str:
    """Where pictures leave as the threshold rises, and whether they are right (Fig. 4)."""
    bands: list[list[Point]] = [[], [], [], [], []]
    for point in evaluation.curve:
        early, right = point.early_exit_fraction, point.early_right_fraction
        late_wrong = 1 - early - (point.top1 - right)
        for band, height in zip(bands, (0, right, early, early + late_wrong, 1), strict=True):
            band.append((point.eta, height))
    x_axis = Axis("exit threshold eta", 0, 1)
    plot = Plot(x_axis, Axis("share of pictures", 0, 1, True), "Share of pictures by stage")
    colours = ("early", "early wrong", "late wrong", "late")
    for lower, upper, colour in zip(bands, bands[1:], colours, strict=False):
        plot.area(lower, upper, colour)
    temperature = evaluation.rows[0].temperature
    for row in evaluation.rows:
        # At another temperature the same eta would part other pictures.
        if row.temperature == temperature:
            named = len(evaluation.rows) <= _MOST_ROWS_NAMED
            plot.vertical(row.eta, row_name(row) if named else "")
    return plot.svg()


def reliability_diagram(evaluation: Evaluation) -> str:
    """How often the network is right when it is so sure."""
    x_axis = Axis("confidence", 0, 1, percent=True)
    plot = Plot(x_axis, Axis("share of right answers", 0, 1, True), "Reliability diagram")
    for each in evaluation.reliability.bins:
        tip = f"{each.images} pictures, {each.confidence:.1%} sure, {each.accuracy:.1%} right"
        if each.images:
            plot.bar(each.lower, each.upper, each.accuracy, "early", tip)
    plot.line([(0, 0), (1, 1)], "ideal")
    return plot.svg()


def confusion_matrix(evaluation: Evaluation) -> str:
    """Rows are true classes, columns what they were taken for; darker is more of the row."""
    rows = [row.class_index for row in evaluation.classes]
    predicted = {entry.predicted for entry in evaluation.confusions}
    shown = sorted({*rows, *predicted})
    place = {index: number for number, index in enumerate(shown)}
    images = {row.class_index: row.images for row in evaluation.classes}
    names = [evaluation.labels[index] for index in shown]
    margin = _margin(names)
    parts = list(_matrix_names(names, margin)) if margin > _CELL else []
    for entry in evaluation.confusions:
        share = entry.images / images[entry.true]
        x, y = margin + place[entry.predicted] * _CELL, margin + place[entry.true] * _CELL
        true, taken = evaluation.labels[entry.true], evaluation.labels[entry.predicted]
        tip = f"{true}, taken for {taken}: {entry.images} of {images[entry.true]} pictures"
        colour = "right" if entry.true == entry.predicted else "wrong"
        parts.append(
            f'<rect class="cell {colour}" x="{x}" y="{y}" width="{_CELL - 1}" '
            f'height="{_CELL - 1}" fill-opacity="{0.12 + 0.88 * share**0.5:.2f}">'
            f"<title>{escape(tip)}</title></rect>"
        )
    side = len(shown) * _CELL
    total = margin + side + _CELL
    frame = f'<rect class="frame" x="{margin}" y="{margin}" width="{side}" height="{side}"/>'
    return (
        f'<svg viewBox="0 0 {total} {total}" role="img" aria-label="Confusion matrix" '
        f'style="max-width:{total * 1.2:.0f}px">{frame}{"".join(parts)}</svg>'
    )


def _margin(names: Sequence[str]) -> int:
    """Room for the names of classes, if there are few enough to be read."""
    if len(names) > _MOST_CLASSES_NAMED:
        return _CELL
    return 16 + 6 * min(_NAME_LETTERS, max(map(len, names)))


def _matrix_names(names: Sequence[str], margin: int) -> list[str]:
    parts = []
    for number, name in enumerate(names):
        text = escape(name if len(name) <= _NAME_LETTERS else name[: _NAME_LETTERS - 1] + "…")
        middle = margin + number * _CELL + _CELL * 0.7
        parts.append(
            f'<text class="name" x="{margin - 5}" y="{middle:.1f}" text-anchor="end">{text}</text>'
            f'<text class="name" transform="translate({middle:.1f} {margin - 5}) rotate(-90)">'
            f"{text}</text>"
        )
    return parts


def _mark(name: str, at: Point, *, above: bool = False, named: bool = True) -> Mark:
    return Mark(name if named else "", f"{name}: {at[1]:.2%} right at {at[0]:.4g}", above)


SUFFIXES = (".png", ".svg")

_SIZE_INCHES = (7.2, 4.6)
_DPI = 150
_LINE, _CHOSEN, _LIMIT, _QUIET = "#2563eb", "#d97706", "#71717a", "#18181b"


def check_plot_file(file: Path) -> None:
    """Find out before the long work what would fail after it.

    Raises:
        ConfigError: The file is no PNG or SVG, or cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"{file} is not a kind of picture that can be drawn.", "Name it .png or .svg."
        )
    require("matplotlib", "Drawing the curve")
    check_output(file)


def write_exit_curve(found: BundleCalibration, file: Path) -> None:
    """Draw accuracy against mean cost, the chosen point and its 95 % interval; whole or not at all.

    Args:
        found: What to draw.
        file: `.png` or `.svg`.

    Raises:
        ConfigError: The file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "Drawing the curve")
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    calibration = found.calibration
    _draw_curve(axes, calibration)
    _draw_limit(axes, calibration)
    _draw_chosen(axes, calibration)
    axes.set_title(
        f"Exit threshold for {calibration.goal}\n{found.precision} in {found.backend}, "
        f"{calibration.images} pictures",
        fontsize=11,
        loc="left",
    )
    axes.set_xlabel("mean cost of a picture (10⁹ multiply-accumulates)")
    axes.set_ylabel("top-1 (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=9)
    # Without date and random names, so that the same calibration gives the same file.
    kind = file.suffix.lower()[1:]
    metadata = {"Date": None} if kind == "svg" else None
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "sacvit-deploy"}):
        figure.savefig(drawn, format=kind, metadata=metadata)
    write_output(file, drawn.getvalue())


def _draw_curve(axes: Any, calibration: Calibration) -> None:
    curve = calibration.curve
    costs = [point.macs_mean_g for point in curve]
    shares = [100 * point.top1 for point in curve]
    axes.plot(costs, shares, color=_LINE, marker=".", markersize=3, label="every threshold")
    for index, name, marker in ((0, "first stage alone", "s"), (-1, "second stage always", "D")):
        label = f"{name}: {shares[index]:.1f} %"
        axes.plot(costs[index], shares[index], marker, color=_QUIET, markersize=6, label=label)


def _draw_limit(axes: Any, calibration: Calibration) -> None:
    """What the goal allows, where it is one of the two axes."""
    goal = calibration.goal
    style = {"color": _LIMIT, "linestyle": "--", "linewidth": 1}
    if goal.kind == "max_accuracy_drop":
        least = 100 * (calibration.reference_top1 - goal.value)
        axes.axhline(least, **style, label=f"least top-1: {least:.1f} %")
    elif goal.kind == "target_macs":
        axes.axvline(goal.value, **style, label=f"largest mean cost: {goal.value:g} G")
    elif goal.kind == "target_exit_fraction":
        early, late = calibration.macs_g
        cost = early + (1 - goal.value) * (late - early)
        axes.axvline(cost, **style, label=f"{goal.value:.0%} leave early")


def _draw_chosen(axes: Any, calibration: Calibration) -> None:
    chosen, intervals = calibration.chosen, calibration.intervals
    axes.errorbar(
        chosen.macs_mean_g,
        100 * chosen.top1,
        xerr=_reach(chosen.macs_mean_g, intervals["macs_mean_g"], 1),
        yerr=_reach(chosen.top1, intervals["top1"], 100),
        color=_CHOSEN,
        marker="o",
        markersize=7,
        capsize=4,
        linestyle="none",
        zorder=3,
        label=f"eta {chosen.eta:.3f}: {chosen.top1:.1%}, {chosen.macs_mean_g:.3g} G, "
        f"{chosen.early_exit_fraction:.0%} leave early\n(bars: 95 % interval)",
    )


def _reach(value: float, interval: tuple[float, float], scale: float) -> list[list[float]]:
    """How far an interval goes below and above a value."""
    low, high = interval
    return [[scale * max(0.0, value - low)], [scale * max(0.0, high - value)]]
