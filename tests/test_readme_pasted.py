"""README.md pasted from top to bottom into a shell, as a newcomer does in a fresh clone.

Left out are the lines that fetch and install: `make`, `pip install` and `git clone`.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_BIN = Path(sys.executable).parent
_BLOCK = re.compile(r"^```(sh|console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LEFT_OUT = ("make ", "pip install ", "git clone ")
_PERCENT_POINTS = 3.0

# What may differ from the document: on another CPU the last digits, and which tensor is worst.
_TOKEN = re.compile(
    r"(?P<rest>(?<=\n)\.\.\.\n)"
    r"|(?P<gap>[ ]+)"
    r"|(?P<share>(?<![\w.])\d+(\.\d+)?(?=%))"
    r"|(?P<number>(?<![\w.])\d+\.\d+(e[+-]\d+)?)"
    r"|(?P<tensor>(?<=worst )\w+( of \w+)?)"
    r"|(?P<batch>(?<=at batch )\d+)"
    r"|(?P<device>(?<=onnxruntime on )[^\n]+)"
    r"|(?P<literal>.)",
    re.DOTALL,
)
_PATTERNS = {
    "rest": r"(?:.*\n)*?",
    "gap": " +",
    "share": r"(\d+(?:\.\d+)?)",
    "number": r"[\d.]+(?:e[+-]\d+)?",
    "tensor": r"\w+(?: of \w+)?",
    "batch": r"\d+",
    "device": ".+",
}


@dataclass(frozen=True)
class Command:
    """A command of the document, and the output it shows; None where it shows none."""

    text: str
    output: str | None = None


def commands() -> list[Command]:
    found: list[Command] = []
    program = ""
    for language, code in _BLOCK.findall((_ROOT / "README.md").read_text("utf-8")):
        if language == "python":
            program += code  # a block goes on where the one before it ended
            found.append(Command(f"python - <<'END'\n{program}END"))
        elif language == "sh":
            found += [Command(line) for line in code.splitlines()]
        else:
            shown = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", code, re.MULTILINE)
            found += [Command(text, output) for text, output in shown]
    return [command for command in found if not command.text.startswith(_LEFT_OUT)]


def assert_shown(shown: str, printed: str) -> None:
    """Words, whole numbers and lines are the same, and shares are near; `...` is any lines."""
    pattern = ""
    shares = []
    for token in _TOKEN.finditer("\n" + shown):
        kind = str(token.lastgroup)
        pattern += _PATTERNS.get(kind, re.escape(token[0]))
        if kind == "share":
            shares.append(float(token[0]))
    found = re.fullmatch(pattern, "\n" + printed)
    assert found, f"the document shows\n{shown}\nand the command prints\n{printed}"
    assert [*map(float, found.groups())] == pytest.approx(shares, abs=_PERCENT_POINTS)


def clone(folder: Path) -> Path:
    """Copy the files that git knows, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("needs a clone; this is not one")
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_ROOT / name, folder / name)
    return folder


@pytest.mark.slow
def test_every_block_runs_in_order_and_prints_what_is_shown(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="build-engine needs the extra tensorrt-rtx")
    if not (_BIN / "sacvit-deploy").exists():
        pytest.skip("needs the installed command; this is the package without its installation")
    folder = clone(tmp_path / "sacvit-deploy")
    environment = {**os.environ, "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}"}
    for command in commands():
        ran = subprocess.run(
            ["bash", "-e", "-c", command.text],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{command.text}\n{ran.stdout}"
        if command.output is not None:
            assert_shown(command.output, ran.stdout)


def test_only_what_fetches_and_installs_is_left_out():
    text = (_ROOT / "README.md").read_text("utf-8")
    blocks = [code for language, code in _BLOCK.findall(text) if language != "python"]
    lines = itertools.chain.from_iterable(block.splitlines() for block in blocks)
    starts = {line.removeprefix("$ ").split()[0] for line in lines if line.startswith(_LEFT_OUT)}
    assert starts == {"make", "pip"}
    assert len(commands()) > 15
    assert {command.text.split()[0] for command in commands()} == {"sacvit-deploy", "python"}


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("a  62.2%  b\n", "a 63.0%   b\n"),
        ("3.2 / 12.1 ms, fp32\n", "30.25 / 1.5 ms, fp32\n"),
        ("one\n...\nlast\n", "one\ntwo\nthree\nlast\n"),
        ("one\n...\n", "one\n"),
        (
            "worst score of early_exit: 6.3e-09 at batch 7\n",
            "worst logits of x: 1.0e-07 at batch 2\n",
        ),
        ("fp32, onnxruntime on AMD EPYC, 2 cores\n", "fp32, onnxruntime on another CPU\n"),
    ],
)
def test_what_may_differ(shown, printed):
    assert_shown(shown, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("a  62.2%\n", "a  66.0%\n"),
        ("koala\n", "bison\n"),
        ("120 pictures\n", "119 pictures\n"),
        ("fp32\n", "fp16\n"),
        ("one\nlast\n", "one\ntwo\nlast\n"),
        ("one\n", "one\ntwo\n"),
        ("one\n...\nlast\n", "one\n"),
        ("Written to a\n", ""),
    ],
)
def test_what_may_not_differ(shown, printed):
    with pytest.raises(AssertionError):
        assert_shown(shown, printed)
