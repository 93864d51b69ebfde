"""sacvit-deploy run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sacvit_deploy.commands import options
from sacvit_deploy.commands.options import tell_passed_over
from sacvit_deploy.runtime.pipeline import load

if TYPE_CHECKING:
    from sacvit_deploy.runtime.result import Result


@click.command("run")
@options.bundle_argument
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE..."
)
@options.eta_option
@options.backend_option
@options.precision_option
@options.json_option
def command(bundle: Path, images: tuple[Path, ...], as_json: bool, **chosen: Any) -> None:
    """Classify pictures with BUNDLE.

    \b
    Example:
      sacvit-deploy run bundle cat.jpg dog.jpg --eta 0.6
    """
    pipeline = load(bundle, **chosen)
    tell_passed_over(pipeline, chosen["backend"])
    results = pipeline(list(images))
    if as_json:
        options.echo_json([result.to_dict() for result in results])
        return
    echo_results(results)


def echo_results(results: list[Result]) -> None:
    """A line for each picture: name, class, probability, and how it was decided."""
    names = [Path(result.image or "").name for result in results]
    width = max(map(len, names))
    label_width = max(len(result.label) for result in results)
    for name, result in zip(names, results, strict=True):
        line = f"{name:<{width}}  {result.label:<{label_width}}  {result.probability:6.1%}"
        click.echo(f"{line}  {_how(result)}")


def _how(result: Result) -> str:
    if result.stage == "single":
        return "one stage"
    if result.target_tokens is None:
        return "left at the early exit"
    return (
        f"refined {len(result.target_tokens)} tokens "
        f"(early exit was {result.early_exit_probability:.1%} sure)"
    )
