"""sacvit-deploy calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sacvit_deploy.commands import options
from sacvit_deploy.commands.backend_options import tell_passed_over
from sacvit_deploy.commands.calibrate_options import calibrate_options, goal_of
from sacvit_deploy.evaluation.calibrate import CalibrationRequest, calibrate_bundle
from sacvit_deploy.evaluation.class_names import read_class_names
from sacvit_deploy.evaluation.description import describe_calibration
from sacvit_deploy.evaluation.exit_threshold import ThresholdSearch
from sacvit_deploy.visualize.exit_curve import check_plot_file, write_exit_curve

if TYPE_CHECKING:
    from collections.abc import Mapping


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
        check_plot_file(plot)
    with options.progress_bar() as draw:
        found = calibrate_bundle(
            bundle,
            data,
            request,
            lambda share, what: draw("Measuring", share, what),
            lambda pipeline: tell_passed_over(pipeline, request.backend),
        )
    if plot:
        write_exit_curve(found, plot)
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
