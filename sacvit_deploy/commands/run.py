"""The `run` command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sacvit_deploy.commands import options
from sacvit_deploy.commands.describe import describe_results
from sacvit_deploy.runtime.load import load_classifier


@click.command("run")
@options.bundle_argument
@options.images_argument
@options.eta_option
@options.backend_option
@options.precision_option
@options.decode_option("fast")
@options.json_option
def command(bundle: Path, images: tuple[Path, ...], as_json: bool, **chosen: Any) -> None:
    """Classify each IMAGE with BUNDLE.

    \b
    Example:
      sacvit-deploy run bundle cat.jpg dog.jpg --eta 0.6
    """
    with load_classifier(bundle, **chosen) as pipeline:
        options.tell_backend(pipeline, chosen["backend"])
        results = pipeline(list(images))
    if as_json:
        options.echo_json([result.to_dict() for result in results])
    else:
        options.echo_lines(describe_results(results))
