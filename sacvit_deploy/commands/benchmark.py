"""The `benchmark` command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from sacvit_deploy.benchmark.advice import Goal, advise
from sacvit_deploy.benchmark.benchmark import BenchmarkRequest, run_benchmark
from sacvit_deploy.commands import options
from sacvit_deploy.commands.bar import Progress
from sacvit_deploy.commands.describe_benchmark import describe_advice, describe_benchmark
from sacvit_deploy.engines.registry import AUTO
from sacvit_deploy.spec import Backend, Precision
from sacvit_deploy.visualize.canvas import check_drawing_file
from sacvit_deploy.visualize.speed import SpeedChart


def _several(kind: click.ParamType[Any]) -> Callable[..., tuple[Any, ...] | None]:
    """Make a callback that splits a value at its commas; a repeated part counts once."""

    def split(
        context: click.Context, option: click.Parameter, value: str | None
    ) -> tuple[Any, ...] | None:
        if value is None:
            return None
        parts = (kind.convert(part.strip(), option, context) for part in value.split(","))
        return tuple(dict.fromkeys(parts))

    return split


_count = _several(click.IntRange(min=1))


@click.command("benchmark")
@options.bundle_argument
@click.option(
    "--against", type=options.PATH, metavar="BUNDLE", help="A dense bundle to measure in turns."
)
@click.option(
    "--sac-fraction",
    type=float,
    default=0.235,
    show_default=True,
    help="Share of the pictures to refine, in [0, 1].",
)
@click.option(
    "--batch",
    "batches",
    callback=_count,
    default="1,8,32",
    show_default=True,
    metavar="N,...",
    help="Batch sizes.",
)
@click.option("--threads", callback=_count, metavar="N,...", help="CPU threads of one operator.")
@click.option(
    "--backend",
    "backends",
    callback=_several(click.Choice([AUTO, *get_args(Backend)])),
    metavar=f"[{'|'.join((AUTO, *get_args(Backend)))}],...",
    default=AUTO,
    show_default=True,
    help="Libraries that compute; auto takes the fastest that works.",
)
@click.option(
    "--precision",
    "precisions",
    callback=_several(click.Choice(get_args(Precision))),
    metavar=f"[{'|'.join(get_args(Precision))}],...",
    help="Precisions of the graphs.",
)
@click.option(
    "--images",
    type=options.PATH,
    metavar="DIR",
    help="Pictures to measure from file to answer; random images otherwise.",
)
@click.option("--compare", is_flag=True, help="Measure every backend and precision that runs here.")
@click.option("--advise", "wants_advice", is_flag=True, help="Say what to use for a goal.")
@click.option(
    "--target-latency-ms", type=float, metavar="MS", help="Goal: longest mean time of a batch."
)
@click.option("--target-images-per-s", type=float, metavar="N", help="Goal: pictures per second.")
@click.option(
    "--seconds",
    type=float,
    default=5.0,
    show_default=True,
    help="Time to measure each batch size.",
)
@click.option(
    "--cpu-time",
    is_flag=True,
    help="Count time on a CPU instead of time passed, on a machine with other work; needs "
    "--threads 1.",
)
@click.option("--plot", type=options.PATH, metavar="FILE", help="Draw the times, as .png or .svg.")
@options.json_option
def command(bundle: Path, plot: Path | None, as_json: bool, **chosen: Any) -> None:
    """Measure the speed of BUNDLE on this machine, and how near its limit that is.

    With --against, BUNDLE and a dense network take turns in one process. The limit is the time that
    the backend takes for the matrix products of the graphs alone.

    \b
    Example:
      sacvit-deploy benchmark bundle --against dense --threads 1 --plot speed.png
      sacvit-deploy benchmark bundle --against dense --compare --advise --target-latency-ms 20
    """
    goal = Goal(chosen.pop("target_latency_ms"), chosen.pop("target_images_per_s"))
    wants_advice = chosen.pop("wants_advice")
    if goal.is_given and not wants_advice:
        raise click.UsageError("A goal is for --advise.")
    if plot:
        check_drawing_file(plot)
    for name in ("threads", "precisions"):
        chosen[name] = chosen[name] or (None,)
    request = BenchmarkRequest(bundle, **chosen)
    with Progress() as progress:
        found = run_benchmark(request, progress.bar)
    advice = advise(found, goal) if wants_advice else None
    if plot:
        SpeedChart(found).save(plot)
    if as_json:
        extra = {} if advice is None else {"advice": advice.to_dict()}
        options.echo_json({**found.to_dict(), **extra})
        return
    options.echo_lines(describe_benchmark(found))
    if advice is not None:
        options.echo_lines(describe_advice(advice))
