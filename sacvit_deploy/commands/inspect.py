"""The `inspect` command."""

from __future__ import annotations

from pathlib import Path

import click

from sacvit_deploy.bundle import from_bundle
from sacvit_deploy.commands import options
from sacvit_deploy.commands.describe import describe_bundle
from sacvit_deploy.decode import parse_json, read_bounded
from sacvit_deploy.manifest import MANIFEST


@click.command("inspect")
@options.bundle_argument
@options.json_option
def command(bundle: Path, as_json: bool) -> None:
    """Check the files of BUNDLE and list its contents.

    \b
    Example:
      sacvit-deploy inspect bundle
    """
    if not as_json:
        options.echo_lines(from_bundle(bundle, lambda opened: list(describe_bundle(opened))))
        return
    content, damaged = from_bundle(
        bundle, lambda opened: (read_bounded(bundle / MANIFEST), opened.damaged_engine_files())
    )
    options.echo_json(parse_json(content, MANIFEST))
    for name, damage in damaged.items():
        click.echo(f"Warning: {name} {damage}", err=True)
