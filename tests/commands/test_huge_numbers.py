"""Every numeric option of every verb, with numbers that no machine can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import click
import pytest

from sacvit_deploy.cli import VERBS, main
from sacvit_deploy.engines import build
from sacvit_deploy.engines.machine import Machine
from sacvit_deploy.errors import ExportError
from sacvit_deploy.samples import sample_pictures
from tests.engines.typed_onnx import write_typed_bundle

NUMBERS = ("1" + "0" * 30, "-1" + "0" * 30, "1" + "0" * 400, "1e308", "nan", "inf", "-1")
_NUMERIC = (click.types.IntParamType, click.types.FloatParamType)


def _options() -> Iterator[tuple[str, str]]:
    """Verb and name of every option that takes a number, and of those that parse a text of them."""
    for verb in VERBS:
        command = main.get_command(click.Context(main), verb)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option) and isinstance(parameter.type, _NUMERIC):
                yield verb, parameter.opts[0]
    yield from (("build-engine", "--batch"), ("build-engine", "--compute-capability"))
    yield from (("export", f"--set={field}=") for field in ("num_classes", "depth", "alpha"))


@pytest.fixture
def nothing_translated(monkeypatch) -> None:
    """A number that gets as far as the graphs was taken."""

    def taken(*_: object, **__: object) -> None:
        raise ExportError("It was taken.", "")

    monkeypatch.setattr("torch.onnx.export", taken)


@pytest.fixture
def arguments(
    sac_host, sac_checkpoint, nothing_translated, table, tmp_path, monkeypatch
) -> Callable[[str, str], list[object]]:
    """What each verb needs beside the option."""
    new = ("-o", tmp_path / "bundle", "--force")
    picture, out = sample_pictures()[0], tmp_path / "out.png"
    typed = write_typed_bundle(tmp_path / "typed")
    monkeypatch.setattr(build, "this_machine", lambda: Machine("linux-x86_64", None, ()))
    known: dict[str, list[object]] = {
        "export": [sac_checkpoint, *new],
        "export --seed": ["--random-weights", "--preset", "sac_demo_patch8_64", *new],
        "export --calibration-seed": [
            *(sac_checkpoint, *new, "--precision", "int8", "--calibration-data", table),
        ],
        "run": [sac_host.path, picture],
        "evaluate": [sac_host.path, table],
        "calibrate": [sac_host.path, table, "--dry-run"],
        "verify": [sac_host.path, "--against", sac_checkpoint],
        "visualize": [sac_host.path, picture, "-o", out],
        "bisect-precision": [sac_host.path, table, "--precision", "fp16"],
        "build-engine": [typed.path, "--runtime", "tensorrt-rtx"],
        "demo": ["-o", tmp_path / "demo"],
    }
    return lambda verb, option: [verb, *known.get(f"{verb} {option}", known.get(verb, ()))]


@pytest.mark.parametrize(("verb", "option"), list(_options()))
def test_a_huge_number_is_taken_or_refused_in_words(invoke, arguments, verb, option):
    """`invoke` raises what would be a traceback."""
    if verb == "build-engine":
        pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")
    codes = set()
    for number in NUMBERS:
        given = [option + number] if option.endswith("=") else [option, number]
        ran = invoke(*arguments(verb, option), *given)
        codes.add(ran.code)
        assert ran.code in (0, 1, 2), (number, ran)
        assert len(ran.err) < 2_000
        assert ran.code == 0 or "Error: " in ran.err, (number, ran)
    assert codes != {0}, "not one of them is refused"
