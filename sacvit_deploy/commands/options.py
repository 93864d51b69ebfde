"""Options that several verbs share, and what their text means."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.model.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Sequence

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
force_option = click.option("--force", is_flag=True, help="Replace a bundle that is already there.")
eta_option = click.option(
    "--eta",
    type=float,
    help="Exit threshold in [0, 1]: a picture exits early when the network is surer than this.",
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


def echo_json(document: object) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def progress(line: str) -> None:
    """One step of long work, on stderr, where a pipe does not see it."""
    if sys.stderr.isatty():
        click.echo(line, err=True)


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
