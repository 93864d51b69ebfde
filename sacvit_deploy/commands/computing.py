"""What computes, and why nothing faster does, where nobody said what should."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sacvit_deploy.engines.machine import this_machine
from sacvit_deploy.engines.registry import AUTO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sacvit_deploy.runtime.pipeline import Pipeline


def echo_computing(pipeline: Pipeline, backend: str) -> None:
    """Say on stderr what was taken and what was passed over, if the choice was left to us.

    Args:
        pipeline: Opened, not run yet.
        backend: What was asked for.
    """
    if backend == AUTO:
        for line in computing_lines(pipeline):
            click.echo(line, err=True)


def computing_lines(pipeline: Pipeline) -> Iterator[str]:
    """What was taken, then a line for everything faster that one could expect here.

    That is each runtime the bundle has engines for and, with a GPU, each execution provider.
    """
    opened = pipeline.opened
    yield f"computing with {opened.backend} in {opened.precision} ({opened.provider})"
    built = {engine.runtime for engine in pipeline.manifest.engines}
    has_gpu = bool(this_machine().gpus)
    for name, why in opened.skipped.items():
        if name in built or (has_gpu and name.startswith("onnxruntime ")):
            reasons = "; ".join(map(str.strip, why.splitlines()))
            yield f"  not {name}: {reasons.replace(':; ', ': ')}"
