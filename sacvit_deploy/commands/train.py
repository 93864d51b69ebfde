"""sacvit-deploy train."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sacvit_deploy.commands import options
from sacvit_deploy.libraries import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from sacvit_deploy.training.loop import Progress


@click.command("train")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder to write to, not the config's."
)
@options.json_option
def command(config: Path, output: Path | None, as_json: bool) -> None:
    """Train a network as the file CONFIG (TOML or YAML) says.

    A run that was interrupted goes on where it was when the same command is started again. For
    several GPUs or machines: torchrun --nproc-per-node 8 -m sacvit_deploy.cli train CONFIG

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
    with_bar = sys.stderr.isatty()
    result = train(run, _bar()) if with_bar else train(run)
    if with_bar:
        click.echo(err=True)
    if int(os.environ.get("RANK", "0")) > 0:
        return
    if as_json:
        options.echo_json({key: _plain(value) for key, value in vars(result).items()})
        return
    click.echo(f"{result.checkpoint}: weights after {result.steps} steps")
    for name, value in result.metrics.items():
        click.echo(f"{name} {value:.4f}")
    if result.best is not None:
        click.echo(f"{result.best}: the weights of the best validation")


def _bar() -> Callable[[Progress], None]:
    """A line on stderr that is overwritten after each step."""

    def show(progress: Progress) -> None:
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        share = progress.step / progress.total_steps
        filled = "#" * int(30 * share)
        click.echo(
            f"\r[{filled:<30}] {share:4.0%} loss {progress.loss:.3f} "
            f"{progress.images_per_s:.0f} images/s, {minutes}:{seconds:02} left ",
            nl=False,
            err=True,
        )

    return show


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
