"""The `verify` command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from sacvit_deploy.bundle import Bundle, from_bundle
from sacvit_deploy.commands import options
from sacvit_deploy.commands.bar import Progress
from sacvit_deploy.comparison.decisions import agreement_in_words
from sacvit_deploy.comparison.network import TORCH, of_bundle, reference_for
from sacvit_deploy.comparison.polygraphy_case import SCRIPT
from sacvit_deploy.comparison.verify import Verification, VerifyRequest, verify
from sacvit_deploy.libraries import require
from sacvit_deploy.samples import read_pictures, sample_pictures
from sacvit_deploy.spec import Backend, Precision, check_eta

if TYPE_CHECKING:
    from sacvit_deploy.comparison.layers import LayerError


_Command = TypeVar("_Command", bound="Callable[..., Any]")

_LIMITS = {
    "max_exit_flip_rate": "Share of pictures that exit early in one and not in the other.",
    "min_target_overlap": "Mean share of target tokens that are the same.",
    "min_label_agreement": "Share of pictures with the same class.",
    "max_probability_error": "Largest difference of a probability.",
    "max_tensor_error": "Error of an output over its largest value; of a layer with --layers.",
}
_BAR_WIDTH = 20


def _limit_options(command: _Command) -> _Command:
    """Add one option for each limit; its default follows from the precision."""
    for name, text in reversed(_LIMITS.items()):
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, type=click.FloatRange(0, 1), help=text)(command)
    return command


@click.command("verify")
@options.bundle_argument
@click.option(
    "--against",
    metavar="CHECKPOINT|BUNDLE|PRECISION",
    help="Reference: a checkpoint, another bundle, a precision of this bundle, OTHER:PRECISION, or "
    "`torch` for random weights. The default is torch for FP32 graphs, and these for the rest.",
)
@click.option("--precision", type=click.Choice(get_args(Precision)), help="Precision to verify.")
@options.choice_option("--backend", get_args(Backend), "Backend to verify.")
@click.option(
    "--data",
    type=options.PATH,
    help="Pictures to compare decisions on; without it, those of the package.",
)
@click.option("--layers", is_flag=True, help="Also compare every layer, to find the first error.")
@click.option(
    "--save-polygraphy",
    type=options.PATH,
    metavar="DIR",
    help="Write inputs, reference outputs and a script for NVIDIA's Polygraphy to DIR.",
)
@options.threads_option
@options.eta_option
@_limit_options
@options.json_option
@click.pass_context
def command(ctx: click.Context, /, bundle: Path, as_json: bool, **chosen: Any) -> None:
    """Compare BUNDLE with its model, or with any other reference.

    \b
    Example:
      sacvit-deploy verify bundle --against model.safetensors
      sacvit-deploy verify bundle --precision fp16 --against fp32 --data val.zip --layers
    """
    request = VerifyRequest(
        pictures=read_pictures(chosen["data"]) if chosen["data"] else sample_pictures(),
        eta=None if chosen["eta"] is None else check_eta(chosen["eta"]),
        limits={name: chosen[name] for name in _LIMITS if chosen[name] is not None},
        layers=chosen["layers"],
        polygraphy=chosen["save_polygraphy"],
    )

    def verified(opened: Bundle) -> Verification:
        threads = chosen["threads"]
        candidate = of_bundle(opened, chosen["precision"], chosen["backend"], threads)
        reference = reference_for(opened, chosen["against"], candidate, threads)
        if threads and reference.backend == TORCH:
            require("torch", "Comparing with a model").set_num_threads(threads)
        with Progress() as progress:
            return verify(reference, candidate, request, progress.bar)

    verification = from_bundle(bundle, verified)  # `--layers` reads its graphs again
    if request.polygraphy is not None:
        click.echo(f"compare with: sh {request.polygraphy / SCRIPT} onnxruntime", err=True)
    if as_json:
        options.echo_json(verification.to_dict())
    else:
        _echo(verification)
    ctx.exit(0 if verification.passed else 1)


def _echo(verification: Verification) -> None:
    click.echo(f"{verification.candidate} against {verification.reference}")
    for record in verification.graphs:
        click.echo(
            f"{record.role}: worst tensor {record.tensor}, off by {record.max_abs_error:.2g} "
            f"({record.relative_error:.2g} of its largest value) at batch {record.batch}"
        )
    if agreement := verification.agreement:
        same = agreement_in_words(agreement, verification.config)
        click.echo(f"decisions on {agreement.images} pictures: {same}")
    else:
        click.echo("decisions: not compared, since a graph gives numbers that are not finite")
    if verification.layers is not None:
        _echo_layers(verification, verification.layers)
    for missed in verification.missed:
        side, much = ("most", "much") if missed.limit.startswith("max_") else ("least", "little")
        where = f" ({missed.where})" if missed.where else ""
        click.echo(
            f"missed: {missed.limit}{where} is {missed.found:.3g}, at {side} {missed.allowed:.3g} "
            f"is allowed: {abs(missed.found - missed.allowed):.3g} too {much}"
        )
    click.echo("passed" if verification.passed else "FAILED")


def _echo_layers(verification: Verification, layers: Sequence[LayerError]) -> None:
    click.echo("layer by layer: norm of the difference over norm of the reference")
    width = max((len(layer.place) for layer in layers), default=0)
    finite = (layer.error for layer in layers if layer.error < float("inf"))
    largest = max(finite, default=0.0) or 1.0
    for layer in layers:
        bar = "#" * round(_BAR_WIDTH * min(1.0, layer.error / largest))
        sign = "!" if verification.diverges(layer) else " "
        click.echo(
            f" {sign} {layer.role:<10}  {layer.place:<{width}}  {layer.kind:<7}  "
            f"{layer.error:8.2e}  {bar:<{_BAR_WIDTH}}  {layer.tensor}"
        )
    first, limit = verification.first_diverging, verification.limits.max_tensor_error
    beyond = f"first beyond {limit:g}: {_layer(first)}" if first else ""
    click.echo(beyond or f"no layer is more than {limit:g} off")
    if step := verification.worst_step:
        click.echo(f"the error grows most at {_layer(step)}")


def _layer(layer: LayerError) -> str:
    return (
        f"{layer.place} of {layer.role}, {layer.error:.2g} off (tensor {layer.tensor}, made by "
        f"node {layer.node})"
    )
