"""sacvit-deploy inspect."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.commands import options

if TYPE_CHECKING:
    from pathlib import Path

    from sacvit_deploy.bundle import GraphEntry, Manifest

_MIB = 1 << 20


@click.command("inspect")
@options.bundle_argument
@options.json_option
def command(bundle: Path, as_json: bool) -> None:
    """Check the files of BUNDLE and say what is in it.

    \b
    Example:
      sacvit-deploy inspect bundle
    """
    opened = Bundle.open(bundle)
    if as_json:
        options.echo_json(json.loads(opened.manifest.to_json()))
        return
    _echo_network(opened)
    for graph in opened.manifest.graphs:
        _echo_graph(graph)
    for name, record in opened.manifest.files.items():
        click.echo(f"file     {name}  {_size(record.bytes)}  sha256 {record.sha256[:12]}")
    worst = _worst_parity(opened.manifest)
    click.echo(f"parity   {worst}")
    click.echo(f"made by  {', '.join(f'{k} {v}' for k, v in opened.manifest.tools.items())}")


def _size(count: int) -> str:
    return f"{count / _MIB:.1f} MiB" if count >= _MIB else f"{count / 1024:.0f} KiB"


def _echo_network(bundle: Bundle) -> None:
    manifest = bundle.manifest
    config = manifest.config
    height, width = config.image_size
    click.echo(f"bundle   {bundle.path} (every file is as it was written)")
    click.echo(
        f"network  {config.family}: {height}x{width} px, patch {config.patch_size}, width "
        f"{config.embed_dim}, depth {config.depth}, heads {config.num_heads}, "
        f"{config.num_classes} classes"
    )
    if config.two_stage:
        click.echo(
            f"stages   {config.num_targets} of {config.num_coarse_tokens} tokens are looked at "
            f"again; exit when {config.two_stage.exit_comparison} {manifest.eta:g}; "
            f"{config.two_stage.attention} attention; selection by {manifest.selection}"
        )
    origin = ", ".join(f"{key} {value}" for key, value in manifest.weights.items())
    click.echo(f"weights  {origin}")


def _echo_graph(graph: GraphEntry) -> None:
    click.echo(f"graph    {graph.file}  {graph.role}  {graph.precision}")
    for sign, tensors in (("<-", graph.inputs), ("->", graph.outputs)):
        for tensor in tensors:
            shape = ", ".join(map(str, tensor.shape))
            click.echo(f"           {sign} {tensor.name}  {tensor.dtype} ({shape})")


def _worst_parity(manifest: Manifest) -> str:
    if not manifest.parity:
        return "not measured"
    worst = max(manifest.parity, key=lambda record: float(record["relative_error"]))
    return (
        f"worst {worst['tensor']} of {worst['role']}: {worst['max_abs_error']:.2g} "
        f"({worst['relative_error']:.2g} of its largest value) at batch {worst['batch']}"
    )
