"""The `labels` command."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from sacvit_deploy.bundle_changes import locked, update_manifest
from sacvit_deploy.class_labels import labels_for
from sacvit_deploy.commands import options
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import number_of_classes


@click.command("labels")
@options.bundle_argument
@click.argument("names")
@options.json_option
def command(bundle: Path, names: str, as_json: bool) -> None:
    """Give the classes of BUNDLE the NAMES in a file, or those of imagenet-1k.

    A file is text with a name on each line, or with an id and a name; or JSON.

    \b
    Example:
      sacvit-deploy labels bundle names.txt
      sacvit-deploy labels bundle imagenet-1k
    """
    with locked(bundle) as opened:
        classes = number_of_classes(opened.manifest.config)
        if not classes:
            raise ConfigError(f"{bundle} gives features and has no classes.", "Name another one.")
        labels = labels_for(names, classes)
        update_manifest(opened, dataclasses.replace(opened.manifest, labels=labels))
    if as_json:
        options.echo_json({"bundle": bundle, "labels": labels})
        return
    click.echo(f"{bundle}: {len(labels)} classes, {', '.join(labels[:3])}, ...")
