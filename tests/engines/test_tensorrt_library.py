from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections import deque
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from sacvit_deploy.engines import machine, tensorrt_library
from sacvit_deploy.engines.tensorrt_library import (
    Library,
    LibraryLog,
    default_backend,
    library_cuda,
    load_library,
    version_numbers,
)
from sacvit_deploy.errors import EngineError, MissingDependencyError


@pytest.fixture
def install(monkeypatch):
    """Replace a library by a module of that version; None removes it."""

    def put(name: str, version: str | None) -> None:
        module = None
        if version is not None:
            module = ModuleType(name)
            module.__dict__["__version__"] = version
        monkeypatch.setitem(sys.modules, name, module)

    return put


@pytest.fixture
def jetson(monkeypatch, tmp_path):
    file = tmp_path / "nv_tegra_release"
    file.write_text("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n")
    monkeypatch.setattr(machine, "_TEGRA_RELEASE", file)


@pytest.mark.parametrize(
    ("backend", "version", "label"),
    [
        ("tensorrt", "10.3.0", "TensorRT"),
        ("tensorrt", "11.4.1", "TensorRT"),
        ("tensorrt-rtx", "1.4.0.76", "TensorRT-RTX"),
    ],
)
def test_a_recent_library_is_loaded(install, backend, version, label):
    install(backend.replace("-", "_"), version)
    library = load_library(backend)
    assert (library.backend, library.version, library.label) == (backend, version, label)
    assert library.is_rtx is (backend == "tensorrt-rtx")


@pytest.mark.parametrize(
    ("backend", "version", "fix"),
    [
        ("tensorrt", "8.6.2", "JetPack 6.1"),
        ("tensorrt", "10.2.0", "JetPack 6.1"),
        ("tensorrt-rtx", "1.0.0", "--upgrade tensorrt-rtx"),
    ],
)
def test_an_old_library_is_refused_in_one_error(install, backend, version, fix):
    install(backend.replace("-", "_"), version)
    with pytest.raises(EngineError, match=f"{version} is installed; .* or later") as refused:
        load_library(backend)
    assert fix in refused.value.fix


def test_a_missing_library_names_the_extra(install):
    install("tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"sacvit-deploy\[tensorrt\]"):
        load_library("tensorrt")


def test_on_a_jetson_it_names_jetpack(install, jetson):
    install("tensorrt", None)
    with pytest.raises(MissingDependencyError, match="sudo apt install python3-libnvinfer"):
        load_library("tensorrt")


def test_stubs_alone_are_not_the_library(tmp_path, monkeypatch):
    (tmp_path / "tensorrt_rtx").mkdir()
    (tmp_path / "tensorrt_rtx" / "__init__.pyi").touch()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # so that the stubs go afterwards
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingDependencyError, match="type stubs only"):
        load_library("tensorrt-rtx")


def test_a_library_that_does_not_load_is_no_traceback(monkeypatch):
    def broken(module, purpose):
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(tensorrt_library, "require", broken)
    with pytest.raises(EngineError, match=r"cannot be loaded: libnvinfer.*\n.*doctor"):
        load_library("tensorrt")


@pytest.mark.parametrize(
    ("present", "wanted"),
    [
        ({"tensorrt", "tensorrt_rtx"}, "tensorrt"),
        ({"tensorrt_rtx"}, "tensorrt-rtx"),
    ],
)
def test_the_default_is_the_one_installed(monkeypatch, present, wanted):
    spec = ModuleSpec("library", None, origin="library/__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name in present else None)
    assert default_backend() == wanted


def test_a_mere_folder_of_that_name_is_no_library(monkeypatch, tmp_path):
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt_rtx").mkdir()
    (tmp_path / "tensorrt_rtx" / "__init__.py").touch()
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert default_backend() == "tensorrt-rtx"


def test_without_any_both_are_offered(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"\[tensorrt\].*\[tensorrt-rtx\]"):
        default_backend()


def test_version_numbers_compare_as_numbers():
    assert version_numbers("10.13.0.35") > version_numbers("10.3.0")
    assert version_numbers("11.4.1rc2") == (11, 4, 1)
    assert version_numbers("") == ()


def test_the_wheel_says_which_cuda():
    pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")
    assert library_cuda("tensorrt-rtx") in {"12", "13"}


def test_a_library_of_the_system_does_not_say(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distributions", list)
    assert library_cuda("tensorrt") is None
    assert Library("tensorrt", ModuleType("tensorrt")).label == "TensorRT"


def test_errors_are_found_among_the_lines():
    lines = [("INFO", "a"), ("ERROR", "b"), ("WARNING", "c"), ("INTERNAL_ERROR", "d")]
    log = LibraryLog(deque(lines))
    assert log.errors == ["b", "d"]
    assert log.text.splitlines()[1] == "[ERROR] b"


def test_a_session_of_months_keeps_the_latest_messages():
    log = LibraryLog()
    for number in range(20_000):
        log.add("ERROR", f"{number % 19_998}")
    assert len(log.lines) == 10_000
    assert log.last_errors(3) == ["19997", "0", "1"]


def test_a_second_runtime_writes_to_the_same_log():
    """With a logger each, the library ignores the second one while a first object lives."""
    pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")
    library = load_library("tensorrt-rtx")
    library.log.lines.clear()
    first, second = library.runtime(), load_library("tensorrt-rtx").runtime()
    assert first.logger is second.logger
    for runtime in (first, second):
        before = len(library.log.errors)
        assert runtime.deserialize_cuda_engine(b"no engine") is None
        assert len(library.log.errors) > before
    assert not any("logger is ignored" in text for _, text in library.log.lines)


def library_that_raises(error):
    class Logger:
        VERBOSE = None

        def __init__(self):
            pass

    class Runtime:
        def __init__(self, logger):
            logger.log(SimpleNamespace(name="ERROR"), "driver and library differ")
            raise error

    module = ModuleType("tensorrt")
    module.__dict__.update(ILogger=Logger, Runtime=Runtime, __version__="11.4.1")
    return Library("tensorrt", module)


def test_a_library_that_does_not_start_says_why():
    library = library_that_raises(TypeError("pybind11::init(): factory function returned nullptr"))
    with pytest.raises(
        EngineError, match=r"TensorRT 11\.4\.1 does not start.*:\n  driver and .*\n.*doctor"
    ):
        library.runtime()


def test_a_wrong_argument_stays_a_mistake_of_ours():
    with pytest.raises(TypeError, match="incompatible"):
        library_that_raises(TypeError("incompatible constructor arguments")).runtime()
