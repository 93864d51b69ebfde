"""The `calibrate` command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sacvit_deploy.commands import options
from sacvit_deploy.commands.bar import Progress
from sacvit_deploy.commands.describe import describe_calibration
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.evaluation.exit_calibration import CalibrationRequest, calibrate_bundle
from sacvit_deploy.evaluation.exit_threshold import GOAL_KINDS, ExitGoal, ThresholdSearch
from sacvit_deploy.visualize.canvas import check_drawing_file
from sacvit_deploy.visualize.charts import exit_curve

_SAME = ("precision", "backend", "class_names", "batch_size", "threads")


@click.command("calibrate")
@options.bundle_argument
@options.data_argument
@click.option(
    "--max-accuracy-drop",
    type=float,
    metavar="SHARE",
    help="Largest loss of top-1, for the least cost; 0.005 if no goal is given.",
)
@click.option(
    "--reference-top1",
    type=float,
    metavar="SHARE",
    help="Count the drop from this top-1, for example that of a dense network; the default is the "
    "second stage alone.",
)
@click.option(
    "--target-macs",
    type=float,
    metavar="G",
    help="Largest mean cost of a picture, in 10^9 multiply-accumulates.",
)
@click.option(
    "--target-latency-ms",
    type=float,
    metavar="MS",
    help="Largest mean latency of a picture on this machine.",
)
@click.option(
    "--percentile",
    type=float,
    metavar="P",
    help="Limit this percentile of the latency, for example 95, instead of the mean.",
)
@click.option(
    "--target-exit-fraction",
    type=float,
    metavar="SHARE",
    help="Least share of pictures that exit early.",
)
@click.option(
    "--temperature-scaling",
    is_flag=True,
    help="First scale the confidence of the first stage to match its accuracy.",
)
@options.precision_option
@options.class_names_option
@click.option(
    "--plot",
    type=options.PATH,
    metavar="FILE",
    help="Draw accuracy against cost, as .png or .svg.",
)
@click.option("--dry-run", is_flag=True, help="Leave the bundle unchanged.")
@options.backend_option
@options.batch_size_option(1)
@options.threads_option
@options.json_option
def command(bundle: Path, data: Path, **chosen: Any) -> None:
    """Choose the exit threshold of BUNDLE for one goal on DATA, and store it in BUNDLE.

    Each precision has a threshold of its own.

    \b
    Example:
      sacvit-deploy calibrate bundle val.zip --max-accuracy-drop 0.01 --plot curve.png
    """
    plot = chosen["plot"]
    request = CalibrationRequest(
        ThresholdSearch(_goal(chosen), temperature_scaling=chosen["temperature_scaling"]),
        write=not chosen["dry_run"],
        **{name: chosen[name] for name in _SAME},
    )
    if plot:
        check_drawing_file(plot)
    with Progress() as progress:
        found = calibrate_bundle(
            bundle,
            data,
            request,
            progress.bar,
            lambda pipeline: options.tell_backend(pipeline, request.backend),
        )
    if plot:
        exit_curve(found).save(plot)
    for warning in found.calibration.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if chosen["as_json"]:
        options.echo_json(found.to_dict())
    else:
        options.echo_lines(describe_calibration(found))


def _goal(chosen: Mapping[str, Any]) -> ExitGoal:
    """Return the one goal that was asked for.

    Raises:
        ConfigError: There are two, or a number is out of range.
    """
    asked = {kind: chosen[kind] for kind in GOAL_KINDS if chosen[kind] is not None}
    if len(asked) > 1:
        raise ConfigError(f"There are {len(asked)} goals: {', '.join(asked)}.", "Give one of them.")
    extra = {"reference_top1": chosen["reference_top1"], "percentile": chosen["percentile"]}
    for kind, value in asked.items():
        return ExitGoal(kind, value, **extra)
    return ExitGoal(**extra)
