"""sacvit-deploy demo."""

from __future__ import annotations

from pathlib import Path

import click

from sacvit_deploy._optional import require
from sacvit_deploy.bundle import Bundle
from sacvit_deploy.commands import options
from sacvit_deploy.commands.run import echo_results
from sacvit_deploy.model.presets import preset
from sacvit_deploy.runtime.assets import sample_pictures
from sacvit_deploy.runtime.pipeline import load
from sacvit_deploy.visualize.token_sheet import Panel, token_sheet

_PRESET = "sac_demo_patch8_64"
_RANDOM_NOTE = "The weights are random, so the labels mean nothing; the machinery is real."


@click.command("demo")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for the bundle and the picture.",
)
@options.json_option
def command(output: Path, as_json: bool) -> None:
    """Export a small network and classify the pictures that come with the package.

    \b
    Example:
      sacvit-deploy demo
    """
    require("torch", "The demo exports a network first, and")
    bundle = _random_bundle(output / "bundle")
    pictures = list(sample_pictures())
    pipeline = load(bundle.path)
    # Random weights are never sure of anything: let half of the pictures leave early.
    surest = sorted(result.early_exit_probability or 0 for result in pipeline(pictures))
    pipeline.eta = (surest[1] + surest[2]) / 2
    results = pipeline(pictures)
    sheet = output / "tokens.png"
    panels = [Panel(picture, result) for picture, result in zip(pictures, results, strict=True)]
    grid = bundle.manifest.config.coarse_grid
    token_sheet(panels, pipeline.preprocess, grid, _RANDOM_NOTE).save(sheet)
    if as_json:
        options.echo_json(
            {"results": [result.to_dict() for result in results], "sheet": str(sheet)}
        )
        return
    echo_results(results)
    click.echo(_RANDOM_NOTE)
    click.echo(f"What the network looked at: {sheet}")


def _random_bundle(path: Path) -> Bundle:
    from sacvit_deploy.exporters.export_request import ExportRequest, run_export

    return run_export(ExportRequest(path, base=preset(_PRESET), force=True), options.progress)
