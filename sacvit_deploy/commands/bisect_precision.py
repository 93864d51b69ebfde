"""sacvit-deploy bisect-precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.commands import options
from sacvit_deploy.files import check_output, write_output
from sacvit_deploy.libraries import require


@click.command("bisect-precision")
@options.bundle_argument
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--precision", type=click.Choice(["fp16", "int8"]), required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Where to write the nodes, one a line, for export --keep-float FILE.",
)
@options.calibration_options
@options.json_option
def command(bundle: Path, data: Path, output: Path, as_json: bool, **chosen: Any) -> None:
    """Find the smallest set of nodes of BUNDLE that has to stay in FP32.

    Decisions on the pictures of DATA are compared with those of FP32, with ever fewer nodes kept.

    \b
    Example:
      sacvit-deploy bisect-precision bundle val.zip --precision int8 -o keep.txt
    """
    require("onnx", "Converting graphs")
    from sacvit_deploy.exporters.precision.bisect import bisect_precision

    check_output(output)
    request = options.precision_request(chosen["precision"], data, chosen)
    found = bisect_precision(Bundle.open(bundle), request, options.progress)
    # Shown first: it took long, and the file may have become impossible meanwhile.
    if as_json:
        pairs = zip(found.keep, found.where, strict=True)
        options.echo_json(
            {
                "precision": request.precision,
                "keep": [{"node": node, "place": place} for node, place in pairs],
                "agreement": found.agreement.to_dict(),
                "trials": found.trials,
            }
        )
    else:
        click.echo(f"{len(found.keep)} nodes have to stay in FP32, found in {found.trials} trials:")
        click.echo(found.text() or "  none: the limits hold as it is\n", nl=False)
    write_output(output, found.text())
    if not as_json:
        click.echo(f"Written to {output}; use it with: sacvit-deploy export --keep-float {output}")
