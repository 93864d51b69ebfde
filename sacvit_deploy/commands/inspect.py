"""The `inspect` command."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sacvit_deploy.bundle import from_bundle
from sacvit_deploy.commands import options
from sacvit_deploy.commands.describe import describe_bundle


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
    manifest, damaged = from_bundle(
        bundle, lambda opened: (opened.manifest, opened.damaged_engine_files())
    )
    options.echo_json(json.loads(manifest.to_json()))
    for name, damage in damaged.items():
        click.echo(f"Warning: {name} {damage}", err=True)
