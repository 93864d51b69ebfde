"""The `demo` command."""

from __future__ import annotations

from pathlib import Path

import click

from sacvit_deploy.bundle import demo_bundle
from sacvit_deploy.commands import options
from sacvit_deploy.commands.describe import describe_results
from sacvit_deploy.errors import ConfigError, raised_as
from sacvit_deploy.runtime.load import load
from sacvit_deploy.samples import sample_pictures
from sacvit_deploy.visualize.token_map import token_map

_NOTE = (
    "A small SAC-ViT that knows 50 classes of 64-pixel pictures. Tabby and espresso are among "
    "them; astronaut and rocket are not."
)


@click.command("demo")
@click.option(
    "-o",
    "--output",
    type=options.PATH,
    default=Path("demo-output"),
    show_default=True,
    help="Folder for the picture of the refined tokens.",
)
@options.eta_option
@options.json_option
def command(output: Path, eta: float | None, as_json: bool) -> None:
    """Classify the pictures of the package with the network of the package.

    \b
    Example:
      sacvit-deploy demo
    """
    file = output / "tokens.png"
    with raised_as(ConfigError, f"{file} cannot be written", "Choose another -o."):
        output.mkdir(parents=True, exist_ok=True)
    with load(demo_bundle(), eta=eta) as pipeline:
        drawn = token_map(pipeline, list(sample_pictures()), note=_NOTE)
    drawn.save(file)
    results = [seen.result for seen in drawn.looks]
    if as_json:
        options.echo_json({"results": [result.to_dict() for result in results], "sheet": file})
        return
    options.echo_lines(describe_results(results, [picture.name for picture in sample_pictures()]))
    click.echo(_NOTE)
    click.echo(f"Refined tokens: {file}")
