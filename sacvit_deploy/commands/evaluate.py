"""sacvit-deploy evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sacvit_deploy.commands import options
from sacvit_deploy.commands.describe import evaluation_lines
from sacvit_deploy.commands.options import tell_passed_over
from sacvit_deploy.evaluation.evaluate import EvaluationRequest, read_compared, run_evaluation
from sacvit_deploy.files import check_output, write_output
from sacvit_deploy.visualize.report import html_report

if TYPE_CHECKING:
    from collections.abc import Iterable


@click.command("evaluate")
@options.bundle_argument
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--eta",
    "etas",
    type=float,
    multiple=True,
    help="Exit threshold in [0, 1]; repeat it for several, which cost no more than one.",
)
@click.option(
    "--class-names",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What the classes of DATA are called, where they are ids such as n02123045.",
)
@options.backend_option
@options.precision_option
@options.choice_option(
    "--on-corrupt", ["skip", "stop"], "What to do with a picture that cannot be read."
)
@click.option("--report", type=click.Path(path_type=Path), help="Also write an HTML page here.")
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Another evaluation, written with --json, to mark in the report.",
)
@options.json_option
def command(report: Path | None, compare: Iterable[Path], as_json: bool, **chosen: Any) -> None:
    """Measure accuracy, cost and latency of BUNDLE on the labelled pictures of DATA.

    \b
    Example:
      sacvit-deploy evaluate bundle val.zip --report report.html
      sacvit-deploy evaluate bundle val.zip --eta 0.4 --eta 0.6 --json
    """
    if compare and not report:
        raise click.UsageError("--compare marks evaluations in a report; name it with --report.")
    request = EvaluationRequest(**chosen)
    compared = [row for file in compare for row in read_compared(file)]
    if report:
        check_output(report)
    with options.progress_bar() as draw:
        evaluation = run_evaluation(
            request,
            lambda share, what: draw("evaluate", share, what),
            lambda pipeline: tell_passed_over(pipeline, request.backend),
        )
    if report:
        write_output(report, html_report(evaluation, compared))
    for skipped in evaluation.skipped:
        click.echo(f"Not read: {skipped.name}: {skipped.reason}", err=True)
    if as_json:
        options.echo_json(evaluation.to_dict())
        return
    for line in evaluation_lines(evaluation):
        click.echo(line)
    if report:
        click.echo(f"Written to {report}")
