"""sacvit-deploy verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.commands import options
from sacvit_deploy.evaluation.verify import verify_bundle
from sacvit_deploy.runtime.assets import sample_pictures
from sacvit_deploy.samples import read_samples

if TYPE_CHECKING:
    from sacvit_deploy.evaluation.verify import Verification


@click.command("verify")
@options.bundle_argument
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="The checkpoint the bundle was exported from; not needed for random weights.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Labelled pictures to compare decisions on; without it, those of the package.",
)
@options.json_option
@click.pass_context
def command(
    ctx: click.Context, bundle: Path, against: Path | None, data: Path | None, as_json: bool
) -> None:
    """Compare the graphs of BUNDLE with the torch model they were made from.

    \b
    Example:
      sacvit-deploy verify bundle --against model.safetensors
    """
    pictures = read_samples(data).samples if data else sample_pictures()
    verification = verify_bundle(Bundle.open(bundle), pictures, against)
    if as_json:
        options.echo_json(verification.to_dict())
    else:
        _echo(verification)
    ctx.exit(0 if verification.passed else 1)


def _echo(verification: Verification) -> None:
    for record in verification.graphs:
        click.echo(
            f"{record.role}: worst tensor {record.tensor}, off by {record.max_abs_error:.2g} "
            f"({record.relative_error:.2g} of its largest value) at batch {record.batch}"
        )
    if agreement := verification.agreement:
        click.echo(
            f"decisions on {agreement.images} pictures: {agreement.exit_flip_rate:.1%} exit flips, "
            f"{agreement.target_overlap:.1%} of target tokens the same, "
            f"{agreement.label_agreement:.1%} of labels the same"
        )
    click.echo("passed" if verification.passed else "FAILED: beyond the limits for this precision")
