"""Options that several verbs share, and what their text means."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from sacvit_deploy.engines.build_options import HardwareCompatibility
from sacvit_deploy.engines.tensorrt_flavour import RUNTIMES
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.manifest import Precision
from sacvit_deploy.model.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
    click.option("--runtime", type=click.Choice(RUNTIMES), help="Without it, the one installed."),
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


def write_text(file: Path, text: str) -> None:
    """Write a result the user asked for.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error}.", "Choose another file.") from error


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
