"""The `demo` command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from sacvit_deploy.bundle import demo_bundle
from sacvit_deploy.commands import options
from sacvit_deploy.commands.describe import describe_results
from sacvit_deploy.demo_files import bundle_files, labelled_files, picture_files, write_files
from sacvit_deploy.errors import ConfigError, raised_as
from sacvit_deploy.runtime.load import load
from sacvit_deploy.samples import sample_photographs, sample_pictures
from sacvit_deploy.visualize.token_map import token_map

_NOTE = (
    "A small SAC-ViT that knows 50 classes of 64-pixel pictures. These four are among the 8 of 15 "
    "photographs that it classifies correctly; none was used in its training."
)
_VIEWS_NOTE = (
    "These are views of {photographs} photographs. They serve to try the commands, and say "
    "nothing about accuracy."
)


@click.command("demo")
@click.option(
    "-o",
    "--output",
    type=options.PATH,
    default=Path("demo-output"),
    show_default=True,
    help="Folder for the picture of the refined tokens.",
)
@options.eta_option
@click.option(
    "--pictures", type=options.PATH, metavar="DIR", help="Write the sample pictures into DIR."
)
@click.option(
    "--labelled",
    type=options.PATH,
    metavar="DIR",
    help="Write a small labelled set into DIR, to try evaluate, calibrate and train on.",
)
@click.option(
    "--bundle", type=options.PATH, metavar="DIR", help="Write the demo network as a bundle to DIR."
)
@options.json_option
@click.pass_context
def command(context: click.Context, /, **chosen: Any) -> None:
    """Classify the pictures of the package with the network of the package.

    With --pictures, --labelled or --bundle, write these instead, to try other commands on. Nothing
    is overwritten.

    \b
    Example:
      sacvit-deploy demo
      sacvit-deploy demo --pictures pictures --labelled labelled --bundle bundle
    """
    folders = {name: chosen[name] for name in _WRITERS if chosen[name] is not None}
    if not folders:
        _classify(chosen["output"], chosen["eta"], chosen["as_json"])
        return
    for name in ("output", "eta"):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} is for the demo without --{next(iter(folders))}.")
    written = {name: _WRITERS[name](folder) for name, folder in folders.items()}
    if chosen["as_json"]:
        options.echo_json(written)
        return
    _describe(written, str(folders.get("bundle", "BUNDLE")))


def _classify(output: Path, eta: float | None, as_json: bool) -> None:
    file = output / "tokens.png"
    with raised_as(ConfigError, f"{file} cannot be written", "Choose another -o."):
        output.mkdir(parents=True, exist_ok=True)
    with load(demo_bundle(), eta=eta) as pipeline:
        drawn = token_map(pipeline, list(sample_pictures()), note=_NOTE)
    drawn.save(file)
    results = [seen.result for seen in drawn.looks]
    if as_json:
        options.echo_json({"results": [result.to_dict() for result in results], "sheet": file})
        return
    options.echo_lines(describe_results(results, [picture.name for picture in sample_pictures()]))
    click.echo(_NOTE)
    click.echo(f"Refined tokens: {file}")


def _write_pictures(folder: Path) -> dict[str, object]:
    write_files(folder, picture_files(), alone=False)
    return {"folder": folder, "images": len(sample_pictures())}


def _write_labelled(folder: Path) -> dict[str, object]:
    files = labelled_files()
    write_files(folder, files, alone=True)
    photographs = sample_photographs()
    return {
        "folder": folder,
        "images": sum(name.endswith(".jpg") for name in files),
        "classes": len(photographs.classes),
        "photographs": len(photographs.samples),
    }


def _write_bundle(folder: Path) -> dict[str, object]:
    write_files(folder, bundle_files(), alone=True)
    return {"folder": folder}


_WRITERS = {"pictures": _write_pictures, "labelled": _write_labelled, "bundle": _write_bundle}


def _describe(written: dict[str, dict[str, object]], bundle: str) -> None:
    """Say what was written, and what to do with it."""
    pictures, labelled = written.get("pictures"), written.get("labelled")
    if pictures:
        click.echo("{folder}: {images} pictures".format(**pictures))
    if labelled:
        click.echo("{folder}: {images} pictures of {classes} classes".format(**labelled))
        click.echo(_VIEWS_NOTE.format(**labelled))
    if "bundle" in written:
        click.echo(f"{bundle}: the demo network, as a bundle")
    data = labelled or pictures or {"folder": "PICTURE"}
    verb = "evaluate" if labelled else "run"
    click.echo(f"Next: {shlex.join(['sacvit-deploy', verb, bundle, str(data['folder'])])}")
