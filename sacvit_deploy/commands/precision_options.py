"""Options about FP16 and INT8, and what they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sacvit_deploy.bundle import Bundle
    from sacvit_deploy.exporters.precision.request import LowPrecision, PrecisionRequest

_Command = TypeVar("_Command", bound="Callable[..., Any]")

precision_option = click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=["fp32"],
    metavar="fp32|fp16|int8",
    help="Graphs to write beside the FP32 ones; several with commas or by repeating the option.",
)
# Pictures; 256 are the default, and below this the range of many a channel is not seen.
_FEW = 64

calibration_data_option = click.option(
    "--calibration-data",
    type=click.Path(path_type=Path),
    metavar="DATA",
    help="Pictures to calibrate INT8 on, and to compare the decisions of FP16 and INT8 on: a "
    "folder of them or of class folders, a zip, or a labelled table.",
)
_CALIBRATION = (
    click.option(
        "--calibration-method",
        type=click.Choice(["minmax", "percentile", "entropy"]),
        default="minmax",
        show_default=True,
        help="How INT8 ranges are found.",
    ),
    click.option(
        "--calibration-samples",
        type=click.IntRange(min=1),
        default=256,
        show_default=True,
        help="Pictures of DATA to use.",
    ),
    click.option(
        "--calibration-seed", default=0, show_default=True, help="Of the choice of pictures."
    ),
    click.option(
        "--keep-float",
        multiple=True,
        metavar="FILE|NAME",
        help="What stays in FP32: a file from bisect-precision, a node, or a place such as "
        "blocks.3.mlp.fc1, with early_exit: or refine: before it for one graph only.",
    ),
)


def calibration_options(command: _Command) -> _Command:
    """Everything there is to choose about a lower precision but the precision and the data."""
    for option in reversed(_CALIBRATION):
        command = option(command)
    return command


def requests(chosen: Mapping[str, Any]) -> tuple[PrecisionRequest, ...]:
    """What all options together ask for, one request a precision; FP32 needs none.

    Raises:
        ConfigError: A precision is unknown, or INT8 is asked for without data.
    """
    names = [name.strip() for item in chosen["precisions"] for name in item.split(",")]
    wanted: dict[Any, None] = dict.fromkeys(name for name in names if name != "fp32")
    return tuple(request(name, chosen["calibration_data"], chosen) for name in wanted)


def request(
    precision: LowPrecision, data: Path | None, chosen: Mapping[str, Any]
) -> PrecisionRequest:
    """One request with the values of `calibration_options`; errors as in `requests`."""
    from sacvit_deploy.exporters.precision.request import PrecisionRequest, read_keep

    return PrecisionRequest(
        precision,
        data,
        method=chosen["calibration_method"],
        samples=chosen["calibration_samples"],
        seed=chosen["calibration_seed"],
        keep=read_keep(chosen["keep_float"]),
    )


def echo_agreements(bundle: Bundle) -> None:
    """A line for each lower precision of a bundle."""
    for precision, record in bundle.manifest.precisions.items():
        agreement = record["agreement"]
        click.echo(
            f"{precision} against fp32 on {agreement['images']} pictures: "
            f"{agreement['label_agreement']:.1%} of labels and "
            f"{agreement['target_overlap']:.1%} of target tokens the same, "
            f"{agreement['exit_flip_rate']:.1%} of exits flip."
        )
        if precision == "int8" and agreement["images"] < _FEW:
            click.echo(
                f"{agreement['images']} pictures are few to calibrate INT8 on, and prove little: "
                "name some hundred with --calibration-data."
            )
