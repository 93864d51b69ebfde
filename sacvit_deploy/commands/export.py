"""The `export` command."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sacvit_deploy.commands import options
from sacvit_deploy.commands.bar import Progress
from sacvit_deploy.commands.describe import describe_export
from sacvit_deploy.decode import parse_json
from sacvit_deploy.engines.onnxruntime_providers import onnxruntime
from sacvit_deploy.errors import ConfigError, raised_as
from sacvit_deploy.families import FAMILIES
from sacvit_deploy.families.config import PRESETS
from sacvit_deploy.families.config import preset as preset_config
from sacvit_deploy.libraries import require, require_export

if TYPE_CHECKING:
    from sacvit_deploy.exporters.gate_capacity import CapacityRequest
    from sacvit_deploy.exporters.precision.request import PrecisionRequest
    from sacvit_deploy.exporters.preprocessing import PreprocessingRequest


def _preset_list() -> str:
    """Name the presets of each family, as they are to stand under the options."""
    lines = [
        f"  {family.title}\n" + "\n".join(f"    {name}" for name in family.presets)
        for family in FAMILIES.values()
    ]
    return "\b\nPresets:\n" + "\n".join(lines)


@click.command("export", epilog=_preset_list())
@click.argument("checkpoint", type=options.PATH, required=False)
@click.option(
    "-o", "--output", type=options.PATH, required=True, metavar="BUNDLE", help="Folder to write."
)
@click.option(
    "--preset",
    type=click.Choice(sorted(PRESETS)),
    metavar="NAME",
    help="Network, one of the presets below.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change one field of the preset, for example num_classes=10 or image_size=224x320.",
)
@click.option("--random-weights", is_flag=True, help="Draw weights instead of reading them.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random weights.")
@click.option("--opset", default=18, show_default=True, help="ONNX operator set, 18 to 25.")
@options.choice_option(
    "--selection", ("host", "graph"), "Who selects the target tokens: the host or the second graph."
)
@options.choice_option(
    "--input", ("float", "uint8"), "Normalised floats, or raw pixels that the graph normalises."
)
@options.choice_option(
    "--weight-storage", ("fp32", "fp16"), "fp16 rounds the weights and halves the files."
)
@click.option(
    "--labels",
    metavar="FILE|imagenet-1k",
    help="Names of the classes: text with one on each line, or JSON.",
)
@click.option("--mean", metavar="X[,Y,Z]", help="Mean of the pictures, on the 0 to 1 scale.")
@click.option("--std", metavar="X[,Y,Z]", help="Standard deviation of the pictures.")
@click.option("--crop-ratio", type=float, help="Crop side over the side of the resized picture.")
@click.option(
    "--interpolation", type=click.Choice(["bilinear", "bicubic"]), help="Filter that resizes."
)
@click.option("--eta", default=0.5, show_default=True, help="Exit threshold in [0, 1].")
@click.option("--alpha", type=float, help="Share of the coarse tokens to refine, in (0, 1).")
@click.option(
    "--gates",
    type=click.Choice(["masked", "exact", "capacity"]),
    help="How SViT computes: all tokens; the kept ones of one picture; or as many as --capacity.",
)
@click.option(
    "--capacity",
    metavar="N,N,...",
    help="Tokens of each gate, or of equal parts of the gates; else found on --calibration-data.",
)
@click.option(
    "--capacity-quantile",
    default=0.95,
    show_default=True,
    help="Share of the calibration pictures that a found capacity is enough for.",
)
@click.option(
    "--strict", is_flag=True, help="Compute pictures that need more than the capacity again."
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=["fp32"],
    metavar="fp32|fp16|int8",
    help="Graphs to write beside the FP32 ones; several with commas or by repeating the option.",
)
@options.calibration_data_option
@options.calibration_options
@options.threads_option
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@options.json_option
def command(checkpoint: Path | None, **chosen: Any) -> None:
    """Export CHECKPOINT to a bundle of ONNX graphs, their weights, and a description.

    CHECKPOINT is a file, or the name of a model of timm if timm is installed.

    \b
    Example:
      sacvit-deploy export model.safetensors -o bundle --preset sac_deit_small_patch16_224
      sacvit-deploy export deit_small_patch16_224.fb_in1k -o bundle --labels imagenet-1k
    """
    if (checkpoint is None) != chosen["random_weights"]:
        raise click.UsageError("Give either a CHECKPOINT or --random-weights.")
    require_export("Exporting a model")
    onnxruntime()
    from sacvit_deploy.exporters.export import ExportOptions, export_bundle

    names = ("seed", "opset", "selection", "weight_storage", "labels", "eta", "threads", "force")
    choices = ExportOptions(
        config=preset_config(chosen["preset"]) if chosen["preset"] else None,
        overrides=parse_overrides(
            chosen["overrides"], alpha=chosen["alpha"], **_gate_fields(chosen)
        ),
        preprocessing=_preprocessing_request(chosen),
        capacity=_capacity_request(chosen),
        input_kind=chosen["input"],
        precisions=_precision_requests(chosen),
        **{name: chosen[name] for name in names},
    )
    if choices.threads:
        require("torch", "Exporting a model").set_num_threads(choices.threads)
    with Progress() as progress:
        bundle = export_bundle(checkpoint, chosen["output"], choices, progress.bar)
    if chosen["as_json"]:
        manifest = bundle.manifest
        found = {"parity": manifest.parity, "precisions": manifest.precisions}
        options.echo_json({"bundle": bundle.path, **found})
    else:
        options.echo_lines(describe_export(bundle))


def parse_overrides(assignments: Sequence[str], **named: object) -> dict[str, Any]:
    """Parse `--set FIELD=VALUE`, and add options that set one field by name.

    One number as `image_size` is both sides.

    Args:
        assignments: `FIELD=VALUE` each.
        named: Value by field; None if the option was not given.

    Raises:
        ConfigError: An assignment has no `=`.
    """
    fields: dict[str, Any] = {k: v for k, v in named.items() if v is not None}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {assignment!r} has no value.", "Write --set FIELD=VALUE.")
        value = _value(text)
        fields[name] = (value, value) if name == "image_size" and isinstance(value, int) else value
    return fields


def _value(text: str) -> Any:
    """Parse a number, a size such as 224x320, or else keep the text."""
    sides = text.split("x")
    if len(sides) == 2 and all(side.isdecimal() for side in sides):
        return tuple(map(int, sides))
    with contextlib.suppress(ConfigError):
        value = parse_json(text, "It")
        return tuple(value) if isinstance(value, list) else value
    with contextlib.suppress(ValueError):  # JSON wants a digit before the point
        return float(text)
    return text


def _preprocessing_request(chosen: Mapping[str, Any]) -> PreprocessingRequest:
    from sacvit_deploy.exporters.preprocessing import PreprocessingRequest

    return PreprocessingRequest(
        _numbers("mean", chosen["mean"]),
        _numbers("std", chosen["std"]),
        chosen["crop_ratio"],
        chosen["interpolation"],
    )


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    problem = f"--{name} is {text!r}"
    fix = "Give one number, or three with commas: 0.485,0.456,0.406."
    with raised_as(ConfigError, problem, fix, ValueError):
        return tuple(map(float, text.split(",")))


def _finds_capacity(chosen: Mapping[str, Any]) -> bool:
    """Whether the capacities are to be found on pictures, and not given."""
    given = chosen["capacity"] or any(o.startswith("capacity=") for o in chosen["overrides"])
    return chosen["gates"] == "capacity" and not given


def _gate_fields(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `GateConfig` that are given; with pictures, `with_capacity` sets them."""
    if _finds_capacity(chosen):
        return {}
    counts = chosen["capacity"]
    if counts and not all(count.strip().isdecimal() for count in counts.split(",")):
        raise ConfigError(f"--capacity is {counts!r}.", "Give numbers with commas: 138,97,68.")
    return {
        "mode": chosen["gates"],
        "capacity": tuple(map(int, counts.split(","))) if counts else None,
        "strict": chosen["strict"] or None,
    }


def _capacity_request(chosen: Mapping[str, Any]) -> CapacityRequest | None:
    if not _finds_capacity(chosen):
        return None
    from sacvit_deploy.exporters.gate_capacity import CapacityRequest

    if chosen["calibration_data"] is None:
        raise ConfigError(
            "--gates capacity was given without numbers.",
            "Give --capacity 138,97,68, or pictures to find them on: --calibration-data DATA.",
        )
    return CapacityRequest(
        chosen["calibration_data"],
        chosen["capacity_quantile"],
        chosen["calibration_samples"],
        chosen["calibration_seed"],
        chosen["strict"],
    )


def _precision_requests(chosen: Mapping[str, Any]) -> tuple[PrecisionRequest, ...]:
    """Make one request for each lower precision."""
    names = [name.strip() for item in chosen["precisions"] for name in item.split(",")]
    wanted: dict[Any, None] = dict.fromkeys(name for name in names if name != "fp32")
    data = chosen["calibration_data"]
    return tuple(options.precision_request(name, data, chosen) for name in wanted)
