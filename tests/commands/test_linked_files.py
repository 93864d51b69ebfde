"""Bundles whose files are links, as in a cache of Hugging Face: the targets are never changed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.engines import build
from sacvit_deploy.engines.machine import Machine
from tests.labelled_pictures import write_pictures

if sys.platform == "win32":
    pytest.skip("links need a permission there", allow_module_level=True)


@pytest.fixture
def blobs(tmp_path, copied) -> Path:
    """The targets, named by number; `copied` is the folder of links."""
    folder: Path = tmp_path / "blobs"
    folder.mkdir()
    for number, file in enumerate(sorted(copied.iterdir())):
        file.rename(folder / str(number))
        file.symlink_to(f"../blobs/{number}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_calibrate_replaces_the_link_to_the_description(invoke, copied, blobs, tmp_path):
    before, labels = contents(blobs), Bundle.open(copied).manifest.labels
    data = write_pictures(tmp_path / "data", labels, 60)
    ran = invoke("calibrate", copied, data, "--target-exit-fraction", 0.5)
    assert ran.code == 0, ran
    assert Bundle.open(copied).manifest.exit_calibrations
    assert contents(blobs) == before
    links = {file.name for file in copied.iterdir() if file.is_symlink()}
    assert links == {"ee.onnx", "sac.onnx", "weights.bin"}


def test_engines_of_another_precision_are_made_of_linked_weights(
    invoke, copied, blobs, monkeypatch
):
    pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")
    monkeypatch.setattr(build, "this_machine", lambda: Machine("linux-x86_64", None, ()))
    before = contents(blobs)
    options = ("--runtime", "tensorrt-rtx", "--compute-capability", "86")
    for precision in ("--fp32", "--fp16"):
        ran = invoke("build-engine", copied, precision, *options)
        assert ran.code == 0, ran
    engines = Bundle.open(copied).engines()
    assert [engine.precision for engine in engines] == ["fp32", "fp32", "fp16", "fp16"]
    assert contents(blobs) == before
