"""The `train` command."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import click

from sacvit_deploy.commands import options
from sacvit_deploy.commands.bar import Progress
from sacvit_deploy.libraries import require


@click.command("train")
@click.argument("config", type=options.PATH)
@click.option("-o", "--output", type=options.PATH, help="Output folder, instead of the config's.")
@options.json_option
def command(config: Path, output: Path | None, as_json: bool) -> None:
    """Train a network as described in the file CONFIG (TOML or YAML).

    The same command resumes an interrupted run. For several GPUs or machines:
    torchrun --nproc-per-node 8 -m sacvit_deploy.cli train CONFIG

    \b
    Example:
      sacvit-deploy train demo.toml
    """
    require("torch", "Training a model")
    from sacvit_deploy.training.config import read_train_config
    from sacvit_deploy.training.loop import train

    run = read_train_config(config)
    if output is not None:
        run = dataclasses.replace(run, output=output)
    with Progress() as progress:
        result = train(run, progress.bar)
    if int(os.environ.get("RANK", "0")) > 0:
        return
    if as_json:
        options.echo_json(result)
        return
    click.echo(f"{result.checkpoint}: weights after {result.steps} steps")
    for name, value in result.metrics.items():
        click.echo(f"{name} {value:.4f}")
    if result.best is not None:
        click.echo(f"{result.best}: weights of the best validation")
