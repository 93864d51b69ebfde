"""sacvit-deploy verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from sacvit_deploy.bundle import Bundle, Precision, check_eta
from sacvit_deploy.commands import options, verify_options
from sacvit_deploy.evaluation.contestants import of_bundle, reference_for
from sacvit_deploy.evaluation.verify import VerifyRequest, verify
from sacvit_deploy.runtime.assets import sample_pictures
from sacvit_deploy.samples import read_pictures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sacvit_deploy.runtime.pictures import PictureSource


@click.command("verify")
@options.bundle_argument
@click.option(
    "--against",
    metavar="CHECKPOINT|BUNDLE|PRECISION",
    help="What to trust: a checkpoint, another bundle, a precision of this bundle, "
    "OTHER:PRECISION, or `torch` for random weights. By default torch for FP32 graphs, and these "
    "for the rest.",
)
@click.option("--precision", type=click.Choice(get_args(Precision)), help="What to check.")
@options.choice_option(
    "--backend", ("onnxruntime", "tensorrt", "tensorrt-rtx"), "What runs what is checked."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Pictures to compare decisions on; without it, those of the package.",
)
@click.option("--layers", is_flag=True, help="Also layer by layer: where does it begin to differ?")
@options.eta_option
@verify_options.limit_options
@options.json_option
@click.pass_context
def command(ctx: click.Context, /, bundle: Path, as_json: bool, **chosen: Any) -> None:
    """Compare what BUNDLE decides with what its model, or anything else, decides.

    \b
    Example:
      sacvit-deploy verify bundle --against model.safetensors
      sacvit-deploy verify bundle --precision fp16 --against fp32 --data val.zip --layers
    """
    eta = chosen["eta"] if chosen["eta"] is None else check_eta(chosen["eta"])
    limits = verify_options.limits(chosen)
    request = VerifyRequest(_pictures(chosen["data"]), eta, limits, chosen["layers"])
    opened = Bundle.open(bundle)
    candidate = of_bundle(opened, chosen["precision"], chosen["backend"])
    reference = reference_for(opened, chosen["against"], candidate)
    verification = verify(reference, candidate, request)
    if as_json:
        options.echo_json(verification.to_dict())
    else:
        verify_options.echo(verification)
    ctx.exit(0 if verification.passed else 1)


def _pictures(data: Path | None) -> Sequence[PictureSource]:
    return read_pictures(data) if data else sample_pictures()
