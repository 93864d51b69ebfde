"""Why nothing faster computes, where nobody said what should."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sacvit_deploy.engines.machine import this_machine
from sacvit_deploy.engines.registry import AUTO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sacvit_deploy.runtime.pipeline import Pipeline


def tell_passed_over(pipeline: Pipeline, backend: str) -> None:
    """Say on stderr what was passed over and what was taken, if the choice was left to us.

    Nothing is said where there was nothing to expect but what was taken.

    Args:
        pipeline: Opened, not run yet.
        backend: What was asked for.
    """
    if backend == AUTO:
        for line in passed_over_lines(pipeline):
            click.echo(line, err=True)


def passed_over_lines(pipeline: Pipeline) -> Iterator[str]:
    """What was taken, then a line for everything faster that one could expect here; or nothing.

    That is each runtime the bundle has engines for and, with a GPU, each execution provider.
    """
    opened = pipeline.opened
    built = {engine.runtime for engine in pipeline.manifest.engines}
    has_gpu = bool(this_machine().gpus)
    expected = {
        name: "; ".join(map(str.strip, why.splitlines())).replace(":; ", ": ")
        for name, why in opened.skipped.items()
        if name in built or (has_gpu and name.startswith("onnxruntime "))
    }
    if expected:
        yield f"computing with {opened.backend} in {opened.precision} ({opened.provider})"
        yield from (f"  not {name}: {why}" for name, why in expected.items())
