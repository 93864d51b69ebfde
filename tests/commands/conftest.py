"""The command line in this process, as a user sees it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from sacvit_deploy.cli import main
from sacvit_deploy.samples import sample_pictures
from tests.exporters.graphs import translated_from


@dataclass(frozen=True)
class Ran:
    """Exit code, stdout and stderr of one call."""

    code: int
    out: str
    err: str


Invoke = Callable[..., Ran]


@pytest.fixture
def invoke() -> Invoke:
    def call(*arguments: object) -> Ran:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def refused(invoke) -> Callable[..., str]:
    """Call, and require a failure the user can act on; returns what was said."""

    def call(*arguments: object) -> str:
        ran: Ran = invoke(*arguments)
        assert ran.code == 1, ran
        assert ran.out == ""
        assert ran.err.startswith("Error: ")
        problem, _, fix = ran.err.strip().partition("\n")
        assert problem
        assert fix, "it does not say what to do"
        return ran.err

    return call


@pytest.fixture
def copied(sac_host, tmp_path) -> Path:
    """A bundle to damage."""
    path: Path = tmp_path / "bundle"
    shutil.copytree(sac_host.path, path)
    return path


@pytest.fixture
def translated(sac_host) -> Iterator[None]:
    """No translation: the graphs of `sac_host`."""
    with translated_from(sac_host):
        yield


@pytest.fixture
def table(tmp_path) -> Path:
    """The pictures of the package as a table."""
    file: Path = tmp_path / "data.csv"
    for picture in sample_pictures():
        shutil.copy(picture, tmp_path)
    file.write_text("path,label\n" + "".join(f"{p.name},thing\n" for p in sample_pictures()))
    return file
