"""Every program in examples/ runs with a bundle, and says what its docstring promises."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from sacvit_deploy.samples import sample_pictures

_EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
_PICTURES = [str(path) for path in sample_pictures()]


@pytest.fixture
def run(sac_host, monkeypatch, capsys):
    def run_example(name: str, *arguments: str) -> str:
        command = [name, str(sac_host.path), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(str(_EXAMPLES / name), run_name="__main__")
        return str(capsys.readouterr().out)

    return run_example


@pytest.mark.parametrize(("eta", "stage"), [("0", "early_exit"), ("1", "refine")])
def test_classify_pictures(run, eta, stage) -> None:
    out = run("classify_pictures.py", *_PICTURES, "--eta", eta)
    assert [line for line in out.splitlines() if not line.startswith("  ")] == [
        f"{picture}: {stage}" for picture in _PICTURES
    ]
    assert out.count("looked again") == (len(_PICTURES) if stage == "refine" else 0)


def test_classify_stream(run) -> None:
    out = run("classify_stream.py", _PICTURES[0], "--frames", "11", "--eta", "0")
    numbers = [int(number) for number in re.findall(r"^frame +(\d+)", out, re.MULTILINE)]
    assert numbers == list(range(11))
    assert "11 of 11 frames exited early" in out


def test_threshold_table(run) -> None:
    out = run("threshold_table.py", *_PICTURES, "--eta", "0", "1")
    none, all_refined = (line.split() for line in out.splitlines()[1:])
    assert none[:2] == ["0.000", "100.0%"]
    assert all_refined == ["1.000", "0.0%", "100.0%"]


def test_camera_budget(run) -> None:
    out = run("camera_budget.py", _PICTURES[0], "--frames", "60", "--fps", "0.5")
    found = re.findall(r"^frame +(\d+)  (\w+) +eta 1.000", out, re.MULTILINE)
    assert found == [("50", "spare"), ("60", "spare")]
    assert re.search(r"^refine: \d+ frames, p50 [\d.]+ ms", out, re.MULTILINE)


def test_every_example_has_a_test() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    names = [path.name for path in _EXAMPLES.glob("*.py")]
    assert names
    assert [name for name in names if f'run("{name}"' not in source] == []
