"""The files are read by the real command line of Polygraphy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.comparison.network import Network, of_bundle, of_torch
from sacvit_deploy.comparison.polygraphy_case import SCRIPT, save_polygraphy
from sacvit_deploy.errors import ConfigError, MissingDependencyError
from sacvit_deploy.samples import sample_pictures
from tests.fakes import ENGINE

pytest.importorskip("polygraphy", reason="needs the tensorrt-rtx extra")

BIN = Path(sys.executable).parent
PARSES = "import sys; from polygraphy.tools import main; sys.argv[0] = 'polygraphy'; main()"


def saved(reference: Network, candidate: Network, folder: Path) -> Path:
    pixels = candidate.pixels(sample_pictures()[:2])
    save_polygraphy(reference, candidate, pixels, 1e-3, folder)
    return folder / SCRIPT


def run(script: Path, step: str, commands: Path = BIN, **environment: str):
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", script, step],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def script(sac_host, sac_checkpoint, tmp_path_factory) -> Path:
    """The graphs of a bundle, and what torch says to the same pictures."""
    folder = tmp_path_factory.mktemp("polygraphy") / "a b"
    return saved(of_torch(sac_host, sac_checkpoint), of_bundle(sac_host), folder)


@pytest.mark.slow
def test_polygraphy_finds_the_graphs_equal_to_torch(script, sac_host, tmp_path) -> None:
    moved = tmp_path / "a bundle"
    shutil.copytree(sac_host.path, moved)
    ran = run(script, "onnxruntime", BUNDLE=str(moved))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("Pass Rate: 100.00%") == 2
    for output in ("logits", "score", "coarse_embeddings", "coarse_features"):
        assert f"PASSED | Output: '{output}'" in ran.stdout
    assert f"{moved}/ee.onnx" in ran.stdout


@pytest.mark.slow
def test_polygraphy_finds_other_weights(other_graph, sac_graph, tmp_path) -> None:
    other = saved(of_bundle(sac_graph), of_bundle(other_graph), tmp_path)
    ran = run(other, "onnxruntime")
    assert ran.returncode == 1
    assert "FAILED | Output: 'logits'" in ran.stdout


def test_polygraphy_inspects_the_graphs(script) -> None:
    ran = run(script, "inspect")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for name in ("image", "score", "coarse_features", "fine_index"):
        assert f"{name} [dtype=" in ran.stdout


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A `polygraphy` that writes down what it is asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "polygraphy"
    command.write_text(
        f'#!/bin/sh\nprintf "%s\\t" "$@" >> {tmp_path}/asked\necho >> {tmp_path}/asked\n'
    )
    command.chmod(0o755)
    return folder


def asked(commands: Path) -> list[list[str]]:
    lines = (commands.parent / "asked").read_text().splitlines()
    return [line.rstrip("\t").split("\t") for line in lines]


@pytest.mark.slow
def test_the_command_line_knows_every_option(script, commands, tmp_path) -> None:
    """`--gen-script` reads the options of `run` and runs nothing."""
    for step in ("tensorrt", "layers", "reduce"):
        assert run(script, step, commands).returncode == 0
    lines = asked(commands)
    others = [line[:2] for line in lines if line[0] != "run"]
    assert others == [["data", "merge"], ["debug", "reduce"]] * 2
    runs = [line for line in lines if line[0] == "run"]
    runs += [line[line.index("--check") + 2 :] for line in lines if "--check" in line]
    assert len(runs) == 8
    generated = str(tmp_path / "generated.py")
    parsed = [[*line, "--gen-script", generated] for line in runs[::2]]  # those of one graph
    for arguments in (*parsed, *([*verb, "--help"] for verb in others[:2])):
        command = [sys.executable, "-c", PARSES, *arguments]
        subprocess.run(command, check=True, capture_output=True)
    assert Path(generated).read_text()


def test_engines_are_compared_in_their_library(sac_host, commands, monkeypatch) -> None:
    engines = {
        runtime: ENGINE.__class__(**{**vars(ENGINE), "runtime": runtime, "precision": "fp32"})
        for runtime in ("tensorrt", "tensorrt-rtx")
    }
    monkeypatch.setattr(Bundle, "engines", lambda *_: tuple(engines.values()))
    candidate = of_bundle(sac_host)
    script = saved(candidate, candidate, commands.parent / "case")
    assert run(script, "engines", commands).returncode == 0
    assert len(asked(commands)) == 4
    text = script.read_text()
    assert text.count("    POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy run") == 2
    assert asked(commands)[0][:5] == [
        "run", f"{sac_host.path}/{ENGINE.file}", "--trt", "--model-type", "engine"
    ]  # fmt: skip


def test_a_step_that_fails_does_not_stop_the_next(script, commands) -> None:
    command = commands / "polygraphy"
    command.write_text(command.read_text() + "exit 1\n")
    assert run(script, "onnxruntime", commands).returncode == 1
    assert len(asked(commands)) == 2
    ran = run(script, "")
    assert ran.returncode == 2
    assert "sh compare.sh inspect" in ran.stderr


def test_what_cannot_be_written_is_one_error(
    sac_host, sac_checkpoint, tmp_path, monkeypatch
) -> None:
    candidate = of_bundle(sac_host)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        saved(candidate, candidate, tmp_path / "file")
    torch = of_torch(sac_host, sac_checkpoint)
    with pytest.raises(ConfigError, match="has no graphs"):
        save_polygraphy(candidate, torch, candidate.pixels(sample_pictures()[:1]), 0.1, tmp_path)
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(MissingDependencyError, match="needs polygraphy"):
        saved(candidate, candidate, tmp_path / "case")
