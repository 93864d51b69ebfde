"""The bar on a terminal, of every verb that works for long."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest

from sacvit_deploy.cli import main
from sacvit_deploy.commands.bar import Progress
from sacvit_deploy.samples import sample_pictures
from tests.commands.terminals import Terminal, terminal_for_stderr
from tests.commands.test_train import config_file  # noqa: F401  a fixture
from tests.labelled_pictures import write_pictures

SHOWN, HIDDEN = "\x1b[?25h", "\x1b[?25l"


@pytest.fixture
def on_terminal(monkeypatch, capfd):
    """Call a verb with a terminal as stderr; returns what it drew, and what stdout has."""

    def call(*arguments: object) -> tuple[Terminal, str]:
        capfd.readouterr()
        with terminal_for_stderr(monkeypatch) as shown:
            main([str(argument) for argument in arguments], standalone_mode=False)
        return shown, capfd.readouterr().out

    return call


def check_bar(shown: Terminal) -> None:
    assert shown.shares == sorted(shown.shares)
    assert len(set(shown.shares)) > 1
    assert shown.shares[-1] == 100
    assert set(shown.last_bar) == {"#"}
    assert shown.text.rindex(SHOWN) > shown.text.rindex(HIDDEN), "the cursor stays hidden"
    assert shown.text.endswith("\n")


@pytest.fixture(scope="module")
def data(sac_host, tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data"), sac_host.manifest.labels, 60)


def test_export(on_terminal, sac_checkpoint, translated, tmp_path):
    arguments = ("--precision", "fp16", "--json")
    shown, out = on_terminal("export", sac_checkpoint, "-o", tmp_path / "b", *arguments)
    check_bar(shown)
    assert json.loads(out)["precisions"].keys() == {"fp16"}
    words = "\n".join(shown.words)
    steps = ("reading", "translating ee.onnx", "simplifying sac.onnx", "comparing with torch at")
    for step in (
        *steps,
        "running fp32: 8 of 32",
        "comparing fp16: 32 of 32",
        "writing ee.fp16.onnx",
    ):
        assert step in words


def test_export_to_int8(on_terminal, sac_checkpoint, translated, tmp_path, data):
    call = ("export", sac_checkpoint, "-o", tmp_path / "b", "--force", "--precision", "fp32,int8")
    shown, _ = on_terminal(*call, "--calibration-data", data, "--calibration-samples", 8)
    check_bar(shown)
    words = "\n".join(shown.words)
    for step in ("collecting channels: 8 of 8", "rounding the weight of", "collecting ranges: 8"):
        assert step in words


@pytest.mark.parametrize(
    ("verb", "extra"),
    [
        ("evaluate", ()),
        ("evaluate", ("--batch-size", 8)),
        ("calibrate", ("--dry-run", "--target-exit-fraction", 0.5)),
        ("run", ()),
    ],
)
def test_verbs_of_many_pictures(on_terminal, sac_host, data, verb, extra):
    shown, out = on_terminal(verb, sac_host.path, data, *extra, "--json")
    check_bar(shown)
    assert json.loads(out)
    assert any("of 60 pictures" in words for words in shown.words)


def test_verify(on_terminal, sac_host, sac_checkpoint, data):
    shown, out = on_terminal(
        *("verify", sac_host.path, "--against", sac_checkpoint, "--data", data, "--layers"),
        "--json",
    )
    check_bar(shown)
    assert json.loads(out)["passed"]
    words = "\n".join(shown.words)
    for step in ("comparing tensors at batch 7", "comparing layers", "reference: 16 of 60"):
        assert step in words
    assert "candidate: 60 of 60" in words


def test_visualize(on_terminal, sac_host, tmp_path):
    pictures = list(sample_pictures()) * 10
    shown, _ = on_terminal("visualize", sac_host.path, *pictures, "-o", tmp_path / "map.svg")
    check_bar(shown)
    assert shown.words[1].startswith(f"16 of {len(pictures)} pictures")


def test_bisect_precision(on_terminal, sac_host, table, tmp_path):
    call = ("bisect-precision", sac_host.path, table, "-o", tmp_path / "keep", "--json")
    shown, out = on_terminal(*call, "--precision", "fp16")
    check_bar(shown)
    assert json.loads(out)["trials"]
    assert any(words.startswith("trial 1, 0 nodes: ") for words in shown.words)


def test_benchmark(on_terminal, sac_host):
    quick = ("--seconds", 0, "--threads", 1, "--batch", "1,2", "--backend", "onnxruntime")
    shown, out = on_terminal("benchmark", sac_host.path, *quick, "--json")
    check_bar(shown)
    assert json.loads(out)["rows"]


def test_train(on_terminal, config_file):  # noqa: F811
    shown, _ = on_terminal("train", config_file)
    check_bar(shown)
    assert any("/s, 0:0" in words and " left" in words for words in shown.words)


def test_a_picture_that_cannot_be_read_is_told_above_the_bar(monkeypatch, sac_host, tmp_path):
    pictures = write_pictures(tmp_path, sac_host.manifest.labels, 20)
    (pictures / "bad.jpg").write_text("no picture")
    with terminal_for_stderr(monkeypatch) as shown:
        call = ["run", str(sac_host.path), str(pictures), "--output", str(tmp_path / "found.csv")]
        assert main(call, standalone_mode=False) == 1
    check_bar(shown)
    lines = shown.text.replace("\r\n", "\n").splitlines()
    assert [line for line in lines if "Not read: " in line and "bad.jpg" in line]
    assert "1 of 21 could not be read." in lines[-1]


def test_a_line_erases_the_bar_and_leaves_it_below(monkeypatch):
    with terminal_for_stderr(monkeypatch) as shown, Progress() as progress:
        progress.bar(0.5, "half")
        click.echo("one line", err=True)
        progress.bar(0.5, "half")
        progress.bar(1.0, "all")
    first, _, rest = shown.text.partition("\r\x1b[Kone line\r\n")
    assert "[##########----------]  50%  half" in first
    assert "[##########----------]  50%  half" in rest
    assert shown.words == ["", "half", "half", "all"]


def interrupted() -> None:
    with Progress() as progress:
        progress.bar(0.5, "half")
        raise KeyboardInterrupt


def test_ctrl_c_leaves_the_cursor_and_a_new_line(monkeypatch):
    with terminal_for_stderr(monkeypatch) as shown:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        click.echo("Aborted!", err=True)
    assert shown.text.endswith(f"half{SHOWN}\r\nAborted!\r\n")


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_bar_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with terminal_for_stderr(monkeypatch) as shown, Progress() as progress:
        progress.bar(1.0, 200 * "x")
    drawn = shown.text.split("\r")[-2].removesuffix(SHOWN).replace(HIDDEN, "")
    assert drawn.count("x") > 0
    assert len(drawn) == columns - 1


def test_the_width_is_that_of_the_terminal_of_stderr(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    with terminal_for_stderr(monkeypatch, columns=60) as shown, Progress() as progress:
        progress.bar(1.0, 200 * "x")
    assert shown.words[-1] == 30 * "x"


def test_a_line_that_is_written_in_parts_stays_whole(monkeypatch):
    with terminal_for_stderr(monkeypatch) as shown, Progress() as progress:
        progress.bar(0.5, "half")
        print("one", "two", 3, file=sys.stderr)  # noqa: T201  as other libraries do
        progress.bar(1.0, "all")
    assert "\r\x1b[Kone two 3\r\n" in shown.text


def test_it_is_silent_in_a_pipe(capsys):
    with Progress() as progress:
        progress.bar(0.5, "half")
    assert capsys.readouterr() == ("", "")
