"""At whatever operation a command is killed, its files are old or new; the next run is clean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the open files of a process are looked up in /proc", allow_module_level=True)

_ROOT = Path(__file__).resolve().parents[2]


def sweep(name: str, folder: Path, bundle: object = "", checkpoint: object = "") -> int:
    """Run one case in a process that has no threads; returns the number of kills."""
    arguments = [name, str(folder), str(bundle), str(checkpoint)]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.kills.cases", *arguments],
        cwd=_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-8000:]
    return int(ran.stdout)


@pytest.mark.parametrize(
    ("name", "at_least"),
    [("new", 15), ("replace", 18), ("replace-in-two-renames", 18), ("add", 15), ("report", 8)],
)
def test_files_are_old_or_new_after_a_kill_at_any_operation(tmp_path, name, at_least):
    """The steps on disk of the commands below, without their work."""
    assert sweep(name, tmp_path) >= at_least


def test_a_file_that_is_written_in_place_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match="neither old nor new"):
        sweep("in-place", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at_least"),
    [
        ("export", 20),
        ("export-force", 20),
        ("calibrate", 15),
        ("evaluate", 8),
        ("run-csv", 7),
        ("run-jsonl", 7),
        ("train", 40),
    ],
)
def test_a_command_that_is_killed_at_any_operation(
    tmp_path, sac_host, sac_checkpoint, name, at_least
):
    assert sweep(name, tmp_path, sac_host.path, sac_checkpoint) >= at_least


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at_least"), [("build-engine", 30), ("build-engine-again", 30), ("convert", 45)]
)
def test_a_build_that_is_killed_at_any_operation(tmp_path, sac_host, name, at_least):
    """`convert` makes the FP16 graphs first, as the bundle has none."""
    pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")
    assert sweep(name, tmp_path, sac_host.path) >= at_least
