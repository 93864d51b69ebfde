"""Builds by TensorRT: TensorRT-RTX stands in under that name, and a board has its GPU."""

from __future__ import annotations

import re
import shutil
from typing import Any

import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.decode import encode
from sacvit_deploy.engines import build
from sacvit_deploy.engines.build import build_engines
from sacvit_deploy.errors import EngineError
from tests.engines.builds import NO_GPU, ORIN, quiet, request
from tests.engines.stand_in_tensorrt import install_stand_in

pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")


@pytest.fixture(autouse=True)
def on_a_board(tmp_path, machine, monkeypatch):
    machine(ORIN)
    install_stand_in(tmp_path, monkeypatch)


def test_it_needs_the_gpu(typed, machine):
    machine(NO_GPU)
    with pytest.raises(EngineError, match=r"shows none\.\n.*--runtime tensorrt-rtx"):
        build_engines(typed, request(backend="tensorrt"), quiet)


def test_it_builds_for_that_gpu_only(typed):
    with pytest.raises(EngineError, match=r"GPU of this machine, 8\.7; 8\.6 was asked for"):
        build_engines(typed, request(backend="tensorrt", compute_capabilities=("8.6",)), quiet)


def test_the_entry_says_where_it_was_built(typed, monkeypatch):
    monkeypatch.setattr(build, "library_cuda", lambda name: None)
    options: dict[str, Any] = {"workspace_mib": 256, "optimization_level": 2}
    _, entries = build_engines(typed, request(backend="tensorrt", **options), quiet)
    entry = entries[0]
    assert (entry.os, entry.cuda_version) == ("linux-aarch64", "12.6")
    assert entry.compute_capabilities == ("8.7",)
    assert (entry.gpu, entry.multiprocessors) == ("Orin", 8)
    assert encode(entry.flags) == options
    assert entry.file == "engines/ee.fp32.tensorrt.engine"


def test_timings_are_kept(typed, tmp_path):
    cache = tmp_path / "deep" / "timing.cache"
    for _ in range(2):
        build_engines(typed, request(backend="tensorrt", timing_cache=cache), quiet)
        assert cache.stat().st_size > 0
    names = {file.name for file in cache.parent.iterdir()}
    assert names == {"timing.cache", "timing.cache.lock"}
    log = Bundle.open(typed.path).engine_path(Bundle.open(typed.path).engines()[0])
    assert str(tmp_path) not in log.with_suffix(".log").read_text()


@pytest.mark.parametrize("cache", ["file/timing.cache", "."])
def test_where_timings_cannot_be_kept_nothing_is_built(typed, monkeypatch, tmp_path, cache):
    (tmp_path / "file").touch()
    monkeypatch.setattr(build, "build_plan", None)
    with pytest.raises(EngineError, match=r"cannot be written.*\n.*no engine was built"):
        build_engines(typed, request(backend="tensorrt", timing_cache=tmp_path / cache), quiet)


def test_timings_that_cannot_be_kept_after_all_are_one_error(typed, tmp_path):
    cache = tmp_path / "folder" / "timing.cache"

    def spoil(share: float, what: str) -> None:
        if cache.parent.is_dir():
            shutil.rmtree(cache.parent)
            cache.parent.touch()

    with pytest.raises(EngineError, match=r"cannot be written.*\n.*has not been kept"):
        build_engines(typed, request(backend="tensorrt", timing_cache=cache), spoil)
    assert Bundle.open(typed.path).engines() == ()


def test_fp32_is_not_tf32_either(typed):
    bundle, (entry, _) = build_engines(typed, request(backend="tensorrt"), quiet)
    log = (bundle.path / entry.files[1]).read_text()
    assert re.search(r"Flags +\| \[STRONGLY_TYPED\]", log)


def test_options_reach_the_builder(typed):
    options: dict[str, Any] = {"workspace_mib": 64, "hardware_compatibility": "ampere-plus"}
    bundle, (entry, _) = build_engines(typed, request(backend="tensorrt", **options), quiet)
    log = (bundle.path / entry.files[1]).read_text()
    assert "[WORKSPACE: 64.00 MiB" in log
    assert encode(entry.flags) == options


def test_a_release_without_an_option_says_so(typed, tmp_path, monkeypatch):
    older = "class HardwareCompatibilityLevel:\n    __members__ = {'NONE': 0}\n"
    install_stand_in(tmp_path / "older", monkeypatch, older)
    with pytest.raises(EngineError, match=r"no HardwareCompatibilityLevel\.AMPERE_PLUS"):
        build_engines(
            typed, request(backend="tensorrt", hardware_compatibility="ampere-plus"), quiet
        )
