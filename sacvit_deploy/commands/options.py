"""Options that several commands share, and how all commands print results."""

from __future__ import annotations

import contextlib
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from sacvit_deploy.decode import encode
from sacvit_deploy.engines.machine import this_machine
from sacvit_deploy.engines.registry import AUTO, FASTEST
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.spec import Backend, Decode, Precision

if TYPE_CHECKING:
    from sacvit_deploy.exporters.precision.request import LowPrecision, PrecisionRequest


_Command = TypeVar("_Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)

bundle_argument = click.argument("bundle", type=PATH)
data_argument = click.argument("data", type=PATH)
images_argument = click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGE...")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
eta_option = click.option(
    "--eta",
    type=float,
    help="Exit threshold in [0, 1]: pictures of a higher confidence exit early.",
)
backend_option = click.option(
    "--backend",
    default=AUTO,
    show_default=True,
    type=click.Choice([AUTO, FASTEST, *get_args(Backend)]),
    help="Library that computes; auto takes the one that is known to be fast, fastest measures.",
)
threads_option = click.option("--threads", type=int, help="CPU threads of one operator.")
precision_option = click.option(
    "--precision", type=click.Choice(get_args(Precision)), help="Precision of the graphs."
)
class_names_option = click.option(
    "--class-names",
    type=PATH,
    metavar="FILE|imagenet-1k",
    help="Names of the classes of DATA, if these are ids such as n02123045: JSON, or text with an "
    "id and a name on each line.",
)
calibration_data_option = click.option(
    "--calibration-data",
    type=PATH,
    metavar="DATA",
    help="Pictures to calibrate INT8 on, and to compare FP16 and INT8 with FP32 on: a folder of "
    "them or of class folders, a zip, or a labelled table.",
)
_CALIBRATION_OPTIONS = (
    click.option(
        "--calibration-method",
        type=click.Choice(["minmax", "percentile", "entropy"]),
        default="minmax",
        show_default=True,
        help="Method to find INT8 ranges.",
    ),
    click.option(
        "--calibration-samples",
        type=click.IntRange(min=1),
        default=256,
        show_default=True,
        help="Number of calibration pictures to use.",
    ),
    click.option(
        "--calibration-seed",
        default=0,
        show_default=True,
        help="Seed of the choice of these pictures.",
    ),
    click.option(
        "--keep-float",
        multiple=True,
        metavar="FILE|NAME",
        help="Nodes to keep in FP32: a file from bisect-precision, a node, or a place such as "
        "blocks.3.mlp.fc1; with early_exit: or refine: before it, in one graph only.",
    ),
)


def calibration_options(command: _Command) -> _Command:
    """Add all options of a lower precision except the precision and the data."""
    for option in reversed(_CALIBRATION_OPTIONS):
        command = option(command)
    return command


def choice_option(name: str, choices: Sequence[str], text: str) -> Callable[[_Command], _Command]:
    """Make an option with a few choices, of which the first is the default."""
    kind = click.Choice(choices)
    return click.option(name, type=kind, default=choices[0], show_default=True, help=text)


def batch_size_option(default: int | None, usual: str = "") -> Callable[[_Command], _Command]:
    """Make the option of how many pictures are computed together; `usual` tells a default."""
    text = f"Pictures that are computed together{usual}."
    shown = default is not None
    return click.option("--batch-size", type=int, default=default, show_default=shown, help=text)


def decode_option(default: Decode) -> Callable[[_Command], _Command]:
    """Make the option of how large pictures are read."""
    return click.option(
        "--decode",
        type=click.Choice(get_args(Decode)),
        default=default,
        show_default=True,
        help="Use every pixel of a large picture, as training does, or reduce it while decoding.",
    )


def precision_request(
    precision: LowPrecision, data: Path | None, chosen: Mapping[str, Any]
) -> PrecisionRequest:
    """Make a request of the options of a command.

    Args:
        precision: Precision to make.
        data: Pictures for it.
        chosen: Values of `calibration_options` and of `threads_option`.

    Raises:
        ConfigError: The precision is unknown, or is INT8 without data.
        EngineError: The number of threads is out of range.
    """
    from sacvit_deploy.exporters.precision.request import PrecisionRequest, read_keep

    return PrecisionRequest(
        precision,
        data,
        method=chosen["calibration_method"],
        samples=chosen["calibration_samples"],
        seed=chosen["calibration_seed"],
        keep=read_keep(chosen["keep_float"]),
        threads=chosen["threads"],
    )


def tell_backend(pipeline: Pipeline, asked: str) -> None:
    """Say on stderr which backend was taken instead of a faster one that could be expected here.

    Args:
        pipeline: Open pipeline.
        asked: Value of `--backend`; there is nothing to tell if it names one.
    """
    if asked in (AUTO, FASTEST):
        for line in passed_over_lines(pipeline, asked):
            click.echo(line, err=True)


def passed_over_lines(pipeline: Pipeline, asked: str = AUTO) -> Iterator[str]:
    """Name the backend that was taken, then each that was expected and the reason against it.

    Expected are the backends the bundle has engines for and, on a machine with a GPU, all
    execution providers; all backends if they were measured.

    Yields:
        Lines for a person; none if nothing better was expected, and nothing but ONNX Runtime.
    """
    built = {engine.runtime for engine in pipeline.manifest.engines}
    has_gpu = bool(this_machine().gpus)
    expected = {
        name: "; ".join(map(str.strip, why.splitlines())).replace(":; ", ": ")
        for name, why in pipeline.skipped.items()
        if name in built
        or (has_gpu and name.startswith("onnxruntime "))
        or (asked == FASTEST and name in get_args(Backend))
    }
    if expected or pipeline.backend == "openvino":
        yield f"computing with {pipeline.backend} in {pipeline.precision} ({pipeline.provider})"
        yield from (f"  not {name}: {why}" for name, why in expected.items())


def echo_json(document: object) -> None:
    """Print plain data, dataclasses and paths as one JSON document on stdout."""
    click.echo(json.dumps(encode(document), indent=2, ensure_ascii=False))


@contextlib.contextmanager
def json_array() -> Iterator[Callable[[object], None]]:
    """Print one JSON array on stdout, an item as soon as it is added."""
    count = 0

    def add(item: object) -> None:
        nonlocal count
        text = json.dumps(encode(item), indent=2, ensure_ascii=False)
        click.echo((",\n" if count else "[\n") + textwrap.indent(text, "  "), nl=False)
        count += 1

    try:
        yield add
    except BaseException:
        if count:  # what was printed stays a document
            click.echo("\n]")
        raise
    click.echo("\n]" if count else "[]")


def echo_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout."""
    for line in lines:
        click.echo(line)
