"""Options about the goal of a calibration, and what they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sacvit_deploy.commands import options
from sacvit_deploy.commands.describe import describe_calibration
from sacvit_deploy.commands.options import tell_passed_over
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.evaluation.class_names import read_class_names
from sacvit_deploy.evaluation.exit_calibration import CalibrationRequest, calibrate_bundle
from sacvit_deploy.evaluation.exit_threshold import GOAL_KINDS, ExitGoal, ThresholdSearch
from sacvit_deploy.visualize.canvas import check_drawing_file
from sacvit_deploy.visualize.charts import exit_curve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


_Command = TypeVar("_Command", bound="Callable[..., Any]")

_OPTIONS = (
    click.option(
        "--max-accuracy-drop",
        type=float,
        metavar="SHARE",
        help="Lose at most this much top-1 and save what can be saved; 0.005 where no goal is "
        "given.",
    ),
    click.option(
        "--reference-top1",
        type=float,
        metavar="SHARE",
        help="Count the drop from this top-1, for example that of a dense network; without it, "
        "from the second stage alone.",
    ),
    click.option(
        "--target-macs",
        type=float,
        metavar="G",
        help="Spend at most this many 10^9 multiply-accumulates a picture on average.",
    ),
    click.option(
        "--target-latency-ms",
        type=float,
        metavar="MS",
        help="Take at most this long for a picture on this machine, on average.",
    ),
    click.option(
        "--percentile",
        type=float,
        metavar="P",
        help="Mean this percentile of the latency, for example 95, instead of the average.",
    ),
    click.option(
        "--target-exit-fraction",
        type=float,
        metavar="SHARE",
        help="Let at least this share of the pictures leave early.",
    ),
    click.option(
        "--temperature-scaling",
        is_flag=True,
        help="First make the confidence of the first stage mean what it says.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "fp16", "int8"]),
        help="Which graphs to calibrate; each precision has its own threshold.",
    ),
    click.option(
        "--class-names",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="What the classes of DATA are called, where they are ids: JSON, or a line for each.",
    ),
    click.option(
        "--plot",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Draw accuracy against cost, as .png or .svg.",
    ),
    click.option("--dry-run", is_flag=True, help="Leave the bundle as it is."),
)


def calibrate_options(command: _Command) -> _Command:
    """Add them all, in the order of the help text."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def goal_of(options: Mapping[str, Any]) -> ExitGoal:
    """The one goal that was asked for.

    Raises:
        ConfigError: There are two, or a number is out of range.
    """
    asked = {kind: options[kind] for kind in GOAL_KINDS if options[kind] is not None}
    if len(asked) > 1:
        raise ConfigError(f"There are {len(asked)} goals: {', '.join(asked)}.", "Give one of them.")
    extra = {"reference_top1": options["reference_top1"], "percentile": options["percentile"]}
    for kind, value in asked.items():
        return ExitGoal(kind, value, **extra)
    return ExitGoal(**extra)


@click.command("calibrate")
@options.bundle_argument
@click.argument("data", type=click.Path(path_type=Path))
@calibrate_options
@options.backend_option
@options.json_option
def command(bundle: Path, data: Path, **chosen: Any) -> None:
    """Choose the exit threshold of BUNDLE for one goal on DATA, and keep it in BUNDLE.

    \b
    Example:
      sacvit-deploy calibrate bundle val.zip --max-accuracy-drop 0.01 --plot curve.png
    """
    request = _request(chosen)
    plot = chosen["plot"]
    if plot:
        check_drawing_file(plot)
    with options.progress_bar() as draw:
        found = calibrate_bundle(
            bundle,
            data,
            request,
            lambda share, what: draw("Measuring", share, what),
            lambda pipeline: tell_passed_over(pipeline, request.backend),
        )
    if plot:
        exit_curve(found).save(plot)
    for warning in found.calibration.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if chosen["as_json"]:
        options.echo_json(found.to_dict())
        return
    for line in describe_calibration(found):
        click.echo(line)


def _request(chosen: Mapping[str, Any]) -> CalibrationRequest:
    names = chosen["class_names"]
    return CalibrationRequest(
        ThresholdSearch(goal_of(chosen), temperature_scaling=chosen["temperature_scaling"]),
        precision=chosen["precision"],
        backend=chosen["backend"],
        class_names=read_class_names(names) if names else None,
        write=not chosen["dry_run"],
    )
