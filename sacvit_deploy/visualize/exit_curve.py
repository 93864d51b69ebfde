"""Accuracy against cost for every exit threshold, and the one that was chosen. Needs matplotlib."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from sacvit_deploy._optional import require
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.visualize.report_file import check_writable, write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from sacvit_deploy.evaluation.calibrate import BundleCalibration
    from sacvit_deploy.evaluation.exit_threshold import Calibration

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
    check_writable(file)


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
        f"Exit threshold for {calibration.goal}\n{found.precision} in {found.runtime}, "
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
    write_whole(file, drawn.getvalue())


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
