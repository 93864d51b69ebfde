"""The `visualize` command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sacvit_deploy.commands import options
from sacvit_deploy.commands.bar import Progress
from sacvit_deploy.commands.describe import describe_results
from sacvit_deploy.runtime.load import load_classifier
from sacvit_deploy.visualize.canvas import check_drawing_file
from sacvit_deploy.visualize.panel_map import panel_map
from sacvit_deploy.visualize.panel_sheet import PanelLook, PanelSheet
from sacvit_deploy.visualize.token_map import token_map
from sacvit_deploy.visualize.token_sheet import TokenLook, TokenSheet


@click.command("visualize")
@options.bundle_argument
@options.images_argument
@click.option(
    "-o",
    "--output",
    type=options.PATH,
    required=True,
    metavar="FILE",
    help="File to draw: .png for pixels, .svg for vectors.",
)
@options.eta_option
@options.threads_option
@click.option("--scores/--no-scores", default=True, help="Draw the score of every token.")
@click.option("--columns", type=click.IntRange(min=1), help="Pictures in a row.")
@options.json_option
def command(
    bundle: Path, images: tuple[Path, ...], output: Path, as_json: bool, **chosen: Any
) -> None:
    """Show which tokens of each IMAGE the network of BUNDLE looks at.

    A network of two stages shows the tokens it refined, and their scores; SViT the tokens that each
    gate keeps, STViT what each semantic token takes of the picture.

    \b
    Example:
      sacvit-deploy visualize bundle cat.jpg dog.jpg -o tokens.png
    """
    check_drawing_file(output)
    loading = {name: chosen.pop(name) for name in ("eta", "threads")}
    with load_classifier(bundle, **loading) as pipeline:
        two_stages = pipeline.manifest.config.two_stage is not None
        drawn: TokenSheet | PanelSheet
        with Progress() as progress:
            if two_stages:
                drawn = token_map(pipeline, images, **chosen, on_progress=progress.bar)
            else:
                drawn = panel_map(pipeline, images, progress.bar)
    drawn.save(output)
    if as_json:
        options.echo_json({"sheet": output, "results": [_as_json(seen) for seen in drawn.looks]})
        return
    results = [seen.result for seen in drawn.looks]
    options.echo_lines(describe_results(results, [str(image) for image in images]))
    click.echo(f"{drawn.title}: {output}")


def _as_json(seen: TokenLook | PanelLook) -> dict[str, Any]:
    if isinstance(seen, PanelLook):
        return seen.result.to_dict()
    return {**seen.result.to_dict(), "scores": seen.score.tolist()}
