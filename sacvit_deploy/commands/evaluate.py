"""The `evaluate` command."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from sacvit_deploy.commands import options
from sacvit_deploy.commands.bar import Progress
from sacvit_deploy.commands.describe import describe_evaluation
from sacvit_deploy.evaluation.compared import read_compared
from sacvit_deploy.evaluation.evaluate import EvaluationRequest, run_evaluation
from sacvit_deploy.files import check_output, write_output
from sacvit_deploy.runtime.result_file import LABELLED_COLUMNS, check_results, write_results
from sacvit_deploy.visualize.report import html_report


@click.command("evaluate")
@options.bundle_argument
@options.data_argument
@click.option(
    "--eta",
    "etas",
    type=float,
    multiple=True,
    help="Exit threshold in [0, 1]; repeat it for several, which take no longer than one.",
)
@options.class_names_option
@options.backend_option
@options.precision_option
@options.choice_option(
    "--on-corrupt", ["skip", "stop"], "What to do with a picture that cannot be read."
)
@options.batch_size_option(1)
@options.threads_option
@click.option("--limit", type=int, help="Use so many of the pictures, spread over all classes.")
@options.decode_option("exact")
@click.option(
    "--predictions",
    type=options.PATH,
    metavar="FILE",
    help="Also write the answer for each picture to a .jsonl, .csv or .parquet file.",
)
@click.option(
    "--report",
    "page",
    type=options.PATH,
    metavar="FILE",
    help="Also write an HTML report. It contains small pictures of the surest mistakes.",
)
@click.option(
    "--compare",
    type=options.PATH,
    multiple=True,
    metavar="FILE",
    help="Another evaluation, written with --json, to mark in the report.",
)
@options.json_option
def command(
    predictions: Path | None,
    page: Path | None,
    compare: Iterable[Path],
    as_json: bool,
    **chosen: Any,
) -> None:
    """Measure accuracy, cost and latency of BUNDLE on the labelled pictures of DATA.

    \b
    Example:
      sacvit-deploy evaluate bundle val.zip --report report.html
      sacvit-deploy evaluate bundle val.zip --eta 0.4 --eta 0.6 --json
      sacvit-deploy evaluate bundle photos/ --batch-size 8 --predictions answers.csv
    """
    if compare and not page:
        raise click.UsageError("--compare marks evaluations in a report; name it with --report.")
    _check_files(chosen["data"], predictions, page)
    request = EvaluationRequest(**chosen)
    compared = [row for file in compare for row in read_compared(file)]
    if predictions:
        check_results(predictions)
    if page:
        check_output(page)
    with Progress() as progress:
        evaluation = run_evaluation(
            request, progress.bar, lambda pipeline: options.tell_backend(pipeline, request.backend)
        )
    for skipped in evaluation.skipped:
        click.echo(f"Not read: {skipped.name}: {skipped.reason}", err=True)
    # Shown first: it took long, and the files may not be writable any more.
    if as_json:
        options.echo_json(evaluation.to_dict())
    else:
        options.echo_lines(describe_evaluation(evaluation))
    if predictions:
        rows = (each.to_row() for each in evaluation.predictions)
        write_results(predictions, rows, LABELLED_COLUMNS)
    if page:
        write_output(page, html_report(evaluation, compared))
    if not as_json:
        for file in filter(None, (predictions, page)):
            click.echo(f"Written to {file}")


def _check_files(data: Path, predictions: Path | None, page: Path | None) -> None:
    """Refuse a file that would replace another one of this call."""
    taken = {data.resolve(): "DATA"}
    for option, file in (("--predictions", predictions), ("--report", page)):
        if file:
            if (other := taken.get(file.resolve())) is not None:
                raise click.UsageError(f"{option} would replace {other}; name another file.")
            taken[file.resolve()] = option
