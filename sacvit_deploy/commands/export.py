"""sacvit-deploy export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sacvit_deploy.commands import options
from sacvit_deploy.families.config import preset as preset_config
from sacvit_deploy.libraries import require


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="BUNDLE")
@options.preset_option
@options.set_option
@click.option("--random-weights", is_flag=True, help="Draw weights instead of reading them.")
@click.option("--seed", default=0, show_default=True, help="Of the random weights.")
@click.option("--opset", default=18, show_default=True, help="ONNX operator set, 18 to 25.")
@options.choice_option(
    "--selection", ("host", "graph"), "Who picks the target tokens: the host, or the second graph."
)
@options.choice_option(
    "--input", ("float", "uint8"), "Normalised floats, or raw pixels with the normalisation inside."
)
@options.choice_option(
    "--weight-storage", ("fp32", "fp16"), "fp16 rounds the weights and halves the files."
)
@click.option("--labels", type=click.Path(path_type=Path), help="Text file, one class name a line.")
@click.option("--eta", default=0.5, show_default=True, help="Exit threshold in [0, 1].")
@click.option("--alpha", type=float, help="Share of tokens looked at again, in (0, 1).")
@options.precisions_option
@options.calibration_data_option
@options.calibration_options
@options.force_option
@options.json_option
def command(checkpoint: Path | None, **chosen: Any) -> None:
    """Turn CHECKPOINT into a bundle: ONNX graphs, their weights, and a description.

    \b
    Example:
      sacvit-deploy export model.safetensors -o bundle --preset sac_deit_small_patch16_224
    """
    if (checkpoint is None) != chosen["random_weights"]:
        raise click.UsageError("Give either a CHECKPOINT or --random-weights.")
    require("torch", "Exporting a model")
    from sacvit_deploy.exporters.export import ExportOptions, export_bundle

    names = ("seed", "opset", "selection", "weight_storage", "labels", "eta", "force")
    export_options = ExportOptions(
        config=preset_config(chosen["preset"]) if chosen["preset"] else None,
        overrides=options.parse_overrides(chosen["overrides"], alpha=chosen["alpha"]),
        input_kind=chosen["input"],
        precisions=options.precision_requests(chosen),
        **{name: chosen[name] for name in names},
    )
    bundle = export_bundle(checkpoint, chosen["output"], export_options, options.progress)
    worst = max(bundle.manifest.parity, key=lambda record: record["relative_error"])
    if chosen["as_json"]:
        found = {"parity": bundle.manifest.parity, "precisions": bundle.manifest.precisions}
        options.echo_json({"bundle": str(bundle.path), **found})
        return
    click.echo(f"{bundle.path}: {', '.join(graph.file for graph in bundle.manifest.graphs)}")
    click.echo(
        f"Parity with torch: worst {worst['tensor']} of {worst['role']}, "
        f"{worst['max_abs_error']:.2g} at batch {worst['batch']}."
    )
    options.echo_agreements(bundle)
