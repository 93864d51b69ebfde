"""The command line as a process of its own, and what all verbs have in common."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import sacvit_deploy
from sacvit_deploy.bundle import demo_bundle
from sacvit_deploy.cli import VERBS, main
from sacvit_deploy.errors import BundleError
from sacvit_deploy.samples import sample_pictures


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sacvit_deploy.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, flag):
    result = CliRunner().invoke(main, [verb, flag])
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert f"sacvit-deploy {verb}" in result.output
    assert "--json" in result.output


def test_help_lists_every_verb():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for verb, line in VERBS.items():
        assert verb in result.output
        assert line in result.output


def test_every_file_of_a_verb_is_listed():
    folder = Path(sacvit_deploy.__file__).parent / "commands"
    files = {file.stem for file in folder.glob("*.py")} - {"__init__", "bar", "options"}
    files = {name for name in files if not name.startswith("describe")}
    assert files == {verb.replace("-", "_") for verb in VERBS}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_called_as_it_is_listed(verb):
    module = importlib.import_module(f"sacvit_deploy.commands.{verb.replace('-', '_')}")
    assert module.command.name == verb


def test_the_version():
    result = CliRunner().invoke(main, ["--version"])
    assert result.output.strip() == f"sacvit-deploy, version {sacvit_deploy.__version__}"


def test_an_unknown_verb_is_wrong_usage():
    result = CliRunner().invoke(main, ["classify"])
    assert result.exit_code == 2
    assert "No such command 'classify'" in result.output


def test_success_in_a_pipe(sac_host):
    ran = process("run", sac_host.path, *sample_pictures(), "--json")
    assert ran.returncode == 0, ran.stderr
    assert len(json.loads(ran.stdout)) == 4
    assert ran.stderr == ""


def test_a_failure_is_one_message_without_a_traceback(sac_host, tmp_path):
    (tmp_path / "cat.jpg").write_text("not an image")
    ran = process("run", sac_host.path, tmp_path / "cat.jpg", "--json", "--on-error", "stop")
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.startswith("Error: ")
    assert "cat.jpg" in ran.stderr
    assert "Traceback" not in ran.stderr


def into(stdout: int | str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run with its stdout going to a file, or to a descriptor."""
    command = [sys.executable, "-m", "sacvit_deploy.cli", *map(str, arguments)]
    with open(stdout, "w") as stream:
        return subprocess.run(
            command, stdout=stream, stderr=subprocess.PIPE, text=True, check=False
        )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["inspect", demo_bundle(), "--json"]])
def test_a_full_stdout_is_one_message(arguments):
    ran = into("/dev/full", *arguments)
    assert ran.returncode == 1
    assert ran.stderr.startswith("Error: The output cannot be written: No space left")
    assert ran.stderr.count("\n") == 2


def test_a_reader_that_has_gone_is_not_told(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    ran = into(writer, "--help")
    assert (ran.returncode, ran.stderr) == (1, "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes stdout")
def test_a_closed_stdout_is_one_message():
    script = f"{sys.executable} -m sacvit_deploy.cli --version >&-"
    ran = subprocess.run(script, shell=True, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("Error: The output cannot be written: Bad file")
    assert "Traceback" not in ran.stderr


def test_an_interrupt_that_was_wrapped_aborts(monkeypatch, tmp_path):
    def interrupted(*_args, **_kwargs):
        raise BundleError("It cannot be read.", "Check it.") from KeyboardInterrupt()

    verb = importlib.import_module("sacvit_deploy.commands.inspect").command
    monkeypatch.setattr(verb, "callback", interrupted)
    result = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert result.exit_code == 130
    assert result.output.strip() == "Aborted!"


_ENDED_AT_AN_IMPORT = """
import importlib.abc, os, signal, sys
from sacvit_deploy.cli import main

# What a shell runs in the background ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

module, number, *arguments = sys.argv[1:]

class Ends(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            os.kill(os.getpid(), int(number))

sys.meta_path.insert(0, Ends())
main(arguments)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process there at once")
@pytest.mark.parametrize("module", ["torch", "torch.nn", "sacvit_deploy.commands.export"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_an_import_is_one_word(tmp_path, module, number, code):
    verb = ("export", "--random-weights", "--preset", "sac_demo_patch8_64", "-o", tmp_path / "b")
    command = [sys.executable, "-c", _ENDED_AT_AN_IMPORT, module, str(int(number)), *map(str, verb)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (code, "", "Aborted!\n")
    assert not list(tmp_path.iterdir())


def test_wrong_usage_says_where_help_is(sac_host):
    ran = process("run", sac_host.path)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert "--help" in ran.stderr


@pytest.mark.slow
def test_the_demo_as_in_the_readme(tmp_path):
    ran = process("demo", "-o", tmp_path / "out", "--json")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert len(json.loads(ran.stdout)["results"]) == 4
    assert (tmp_path / "out" / "tokens.png").is_file()
