"""The `bisect-precision` command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.commands import options
from sacvit_deploy.commands.bar import Progress
from sacvit_deploy.engines.onnxruntime_providers import onnxruntime
from sacvit_deploy.files import check_output, write_output
from sacvit_deploy.libraries import require


@click.command("bisect-precision")
@options.bundle_argument
@options.data_argument
@click.option(
    "--precision", type=click.Choice(["fp16", "int8"]), required=True, help="Precision to reach."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="File for the nodes, one a line; see export --keep-float.",
)
@options.calibration_options
@options.threads_option
@options.json_option
def command(bundle: Path, data: Path, output: Path, as_json: bool, **chosen: Any) -> None:
    """Find the smallest set of nodes of BUNDLE that must stay in FP32.

    Compares decisions on the pictures of DATA with those of FP32, with ever fewer nodes kept.

    \b
    Example:
      sacvit-deploy bisect-precision bundle val.zip --precision int8 -o keep.txt
    """
    for library in ("onnx", "onnx_graphsurgeon"):
        require(library, "Converting graphs")
    onnxruntime()
    from sacvit_deploy.exporters.precision.bisect import bisect_precision

    check_output(output)
    request = options.precision_request(chosen["precision"], data, chosen)
    with Progress() as progress:
        found = bisect_precision(Bundle.open(bundle), request, progress.bar)
    # Shown first: it took long, and the file may not be writable any more.
    if as_json:
        pairs = zip(found.keep, found.where, strict=True)
        options.echo_json(
            {
                "precision": request.precision,
                "keep": [{"node": node, "place": place} for node, place in pairs],
                "agreement": found.agreement,
                "trials": found.trials,
            }
        )
    else:
        nodes, trials = (
            f"{count} {word}{'s' * (count != 1)}"
            for count, word in ((len(found.keep), "node"), (found.trials, "trial"))
        )
        click.echo(f"To stay in FP32: {nodes}, found in {trials}:")
        click.echo(found.text() or "  none: all limits hold without\n", nl=False)
    write_output(output, found.text())
    if not as_json:
        click.echo(f"Written to {output}; use it with: sacvit-deploy export --keep-float {output}")
