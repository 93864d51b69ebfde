"""Options that several verbs share, and what their text means."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from sacvit_deploy.engines.build import HardwareCompatibility
from sacvit_deploy.engines.machine import this_machine
from sacvit_deploy.engines.registry import AUTO
from sacvit_deploy.engines.tensorrt_library import ENGINE_BACKENDS
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import PRESETS
from sacvit_deploy.spec import Precision

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sacvit_deploy.bundle import Bundle
    from sacvit_deploy.exporters.precision.request import LowPrecision, PrecisionRequest
    from sacvit_deploy.runtime.pipeline import Pipeline


_Command = TypeVar("_Command", bound=Callable[..., Any])

_BAR_WIDTH = 24
_LINE_WIDTH = 79

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
force_option = click.option("--force", is_flag=True, help="Replace a bundle that is already there.")
eta_option = click.option(
    "--eta",
    type=float,
    help="Exit threshold in [0, 1]: a picture exits early when the network is surer than this.",
)
backend_option = click.option(
    "--backend",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "onnxruntime", "tensorrt", "tensorrt-rtx"]),
    help="What computes; auto takes the fastest that works.",
)
precision_option = click.option(
    "--precision", type=click.Choice(get_args(Precision)), help="Of the graphs."
)
preset_option = click.option(
    "--preset",
    type=click.Choice(sorted(PRESETS)),
    metavar="NAME",
    help="Which network: [sac_|cf_]deit_{tiny|small|base}_patch16_224, ..small_patch16_288, or "
    "..demo_patch8_64. sac_ is SAC-ViT, cf_ is CF-ViT, neither is the dense DeiT.",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change one field of the preset, for example num_classes=10 or image_size=224x320.",
)

_BUILD_OPTIONS = (
    click.option("--fp32", "precision", flag_value="fp32", help="From the FP32 graphs (default)."),
    click.option("--fp16", "precision", flag_value="fp16", help="From FP16 graphs."),
    click.option("--int8", "precision", flag_value="int8", help="From INT8 graphs."),
    click.option(
        "--runtime", type=click.Choice(ENGINE_BACKENDS), help="Without it, the one installed."
    ),
    click.option(
        "--compute-capability",
        metavar="86,89,120",
        help="GPUs to build for. TensorRT-RTX only; TensorRT builds for the GPU of this machine.",
    ),
    click.option("--batch", default="1:8:32", show_default=True, metavar="MIN:OPT:MAX"),
    click.option("--workspace-mib", type=int, help="Upper limit of scratch memory."),
    click.option("--optimization-level", type=int, help="0 (fast build) to 5 (fast engine)."),
    click.option("--timing-cache", type=click.Path(path_type=Path), help="TensorRT only."),
    click.option(
        "--version-compatible", is_flag=True, help="Loads in later releases; TensorRT only."
    ),
    click.option(
        "--hardware-compatibility",
        type=click.Choice(get_args(HardwareCompatibility)),
        default="none",
        help="Runs on other GPUs too. TensorRT only.",
    ),
)


def choice_option(name: str, choices: Sequence[str], text: str) -> Callable[[_Command], _Command]:
    """An option of a few words, the first of which is taken where it is not given."""
    kind = click.Choice(choices)
    return click.option(name, type=kind, default=choices[0], show_default=True, help=text)


def build_options(command: _Command) -> _Command:
    """Add what can be chosen about an engine, in the order of the help text."""
    for option in reversed(_BUILD_OPTIONS):
        command = option(command)
    return command


def echo_json(document: object) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def progress(line: str) -> None:
    """One step of long work, on stderr, where a pipe does not see it."""
    if sys.stderr.isatty():
        click.echo(line, err=True)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, float, str], None]]:
    """A bar on stderr while the block lasts, on a terminal; in a pipe, nothing.

    What it gives is called with a label, the share of the work done in [0, 1], and what is done.
    """
    if not sys.stderr.isatty():
        yield lambda label, share, what: None
        return
    drawn = ""

    def draw(label: str, share: float, what: str) -> None:
        nonlocal drawn
        filled = "#" * int(share * _BAR_WIDTH)
        line = f"{label} [{filled:-<{_BAR_WIDTH}}] {share:4.0%} {what}"[:_LINE_WIDTH]
        if line != drawn:
            click.echo(f"\r{line:<{_LINE_WIDTH}}", nl=False, err=True)
            drawn = line

    try:
        yield draw
    finally:
        click.echo(f"\r{'':<{_LINE_WIDTH}}\r", nl=False, err=True)


def parse_overrides(assignments: Sequence[str], **named: object) -> dict[str, Any]:
    """Fields of `--set FIELD=VALUE`, and of options that set one field by name.

    Args:
        assignments: Each `FIELD=VALUE`.
        named: Field to value; None where the option was not given.

    Raises:
        ConfigError: An assignment has no `=`.
    """
    fields: dict[str, Any] = {k: v for k, v in named.items() if v is not None}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {assignment!r} has no value.", "Write --set FIELD=VALUE.")
        fields[name] = _value(text)
    return fields


def _value(text: str) -> Any:
    """A number, a size such as 224x320, or the text itself."""
    sides = text.split("x")
    if len(sides) == 2 and all(side.isdecimal() for side in sides):
        return tuple(map(int, sides))
    for read in (json.loads, float):  # JSON wants a digit before the point
        with contextlib.suppress(ValueError):
            value = read(text)
            return tuple(value) if isinstance(value, list) else value
    return text


def tell_passed_over(pipeline: Pipeline, backend: str) -> None:
    """Say on stderr what was passed over and what was taken, if the choice was left to us.

    Nothing is said where there was nothing to expect but what was taken.

    Args:
        pipeline: Opened, not run yet.
        backend: What was asked for.
    """
    if backend == AUTO:
        for line in passed_over_lines(pipeline):
            click.echo(line, err=True)


def passed_over_lines(pipeline: Pipeline) -> Iterator[str]:
    """What was taken, then a line for everything faster that one could expect here; or nothing.

    That is each runtime the bundle has engines for and, with a GPU, each execution provider.
    """
    built = {engine.runtime for engine in pipeline.manifest.engines}
    has_gpu = bool(this_machine().gpus)
    expected = {
        name: "; ".join(map(str.strip, why.splitlines())).replace(":; ", ": ")
        for name, why in pipeline.skipped.items()
        if name in built or (has_gpu and name.startswith("onnxruntime "))
    }
    if expected:
        yield f"computing with {pipeline.backend} in {pipeline.precision} ({pipeline.provider})"
        yield from (f"  not {name}: {why}" for name, why in expected.items())


precisions_option = click.option(
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


def precision_requests(chosen: Mapping[str, Any]) -> tuple[PrecisionRequest, ...]:
    """What all options together ask for, one precision_request a precision; FP32 needs none.

    Raises:
        ConfigError: A precision is unknown, or INT8 is asked for without data.
    """
    names = [name.strip() for item in chosen["precisions"] for name in item.split(",")]
    wanted: dict[Any, None] = dict.fromkeys(name for name in names if name != "fp32")
    return tuple(precision_request(name, chosen["calibration_data"], chosen) for name in wanted)


def precision_request(
    precision: LowPrecision, data: Path | None, chosen: Mapping[str, Any]
) -> PrecisionRequest:
    """One request with the values of `calibration_options`; errors as in `precision_requests`."""
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
