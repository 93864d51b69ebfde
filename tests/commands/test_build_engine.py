from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.cli import main
from sacvit_deploy.commands import build_engine
from sacvit_deploy.engines import build
from sacvit_deploy.engines.machine import Machine
from tests.engines.typed_onnx import write_typed_bundle

KEYS = {"role", "file", "bytes", "precision_share", "build_s"}
KEYS |= {"runtime", "runtime_version", "compute_capabilities"}


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")
    monkeypatch.setattr(build, "this_machine", lambda: Machine("linux-x86_64", None, ()))
    return write_typed_bundle(tmp_path / "bundle", "fp16")


def test_json_names_every_engine(invoke, bundle):
    options = ("--runtime", "tensorrt-rtx", "--compute-capability", "86,89,120")
    ran = invoke("build-engine", bundle.path, "--fp16", *options, "--batch", "1:2:4", "--json")
    assert ran.err == ""
    engines = json.loads(ran.out)["engines"]
    assert [engine["role"] for engine in engines] == ["early_exit", "refine"]
    for engine in engines:
        assert engine.keys() >= KEYS
        assert engine["compute_capabilities"] == ["8.6", "8.9", "12.0"]
        assert engine["precision_share"]["half"] > 0.95
        assert engine["batch"] == [1, 2, 4]
        assert (bundle.path / engine["file"]).stat().st_size == engine["bytes"]


def test_text_says_what_is_in_them(invoke, bundle):
    ran = invoke("build-engine", bundle.path, "--runtime", "tensorrt-rtx")
    assert "engines/sac.fp32.tensorrt-rtx.engine: refine" in ran.out
    assert "weights: 0.0% half, 0.0% int8, 100.0% float" in ran.out
    assert invoke("inspect", bundle.path).code == 0


def test_a_bar_is_drawn_on_a_terminal_only(bundle, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    arguments = ["build-engine", str(bundle.path), "--runtime", "tensorrt-rtx"]
    main(arguments, standalone_mode=False)
    said = capsys.readouterr().err
    for role in ("early_exit", "refine"):
        assert re.search(rf"\r\S*\[#+-*\] +\d+%  {role}: ", said)


def test_ctrl_c_is_one_word(bundle, monkeypatch, invoke):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_engine, "build_engines", interrupted)
    ran = invoke("build-engine", bundle.path, "--runtime", "tensorrt-rtx")
    assert (ran.code, ran.out.strip(), ran.err.strip()) == (130, "", "Aborted!")


def test_what_cannot_be_built_is_refused(refused, bundle, monkeypatch):
    call = ("build-engine", bundle.path, "--runtime", "tensorrt-rtx")
    assert "1 <= MIN <= OPT <= MAX" in refused(*call, "--batch", "8:1:32")
    assert "cannot be read" in refused(*call, "--compute-capability", "sm_86")
    assert "does not build for compute capability 8.7" in refused(
        *call, "--compute-capability", "87"
    )
    assert "--calibration-data" in refused(*call, "--int8")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "pip install" in refused("build-engine", bundle.path, "--runtime", "tensorrt")
    assert Bundle.open(bundle.path).engines() == ()


@pytest.mark.parametrize("name", ["ee.fp32.tensorrt-rtx.engine", "sac.fp32.tensorrt-rtx.log"])
def test_a_damaged_engine_is_built_again(invoke, bundle, name):
    call = ("build-engine", bundle.path, "--runtime", "tensorrt-rtx", "--compute-capability", "86")
    assert invoke(*call).code == 0
    (bundle.path / "engines" / name).write_bytes(b"half")
    assert list(Bundle.open(bundle.path).damaged_engine_files()) == [f"engines/{name}"]
    assert invoke(*call).code == 0
    assert Bundle.open(bundle.path).damaged_engine_files() == {}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--runtime", "tensorrt"), "pip install"),
        (("--runtime", "tensorrt-rtx", "--compute-capability", "87"), "does not build for"),
        (("--runtime", "tensorrt-rtx", "--timing-cache", "x"), "has no --timing-cache"),
    ],
)
def test_what_cannot_be_built_is_known_before_graphs_are_made(
    refused, copied, monkeypatch, options, says
):
    pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert says in refused("build-engine", copied, "--fp16", *options)
    assert not (copied / "ee.fp16.onnx").exists()


def test_without_onnx_a_missing_precision_is_an_error(refused, bundle, monkeypatch):
    """A Jetson gets its graphs from another machine."""
    find = importlib.util.find_spec
    absent = {"onnx"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else find(name)
    )
    said = refused("build-engine", bundle.path, "--int8", "--runtime", "tensorrt-rtx")
    assert "export --precision int8 --calibration-data DATA" in said


def test_an_unknown_runtime_is_wrong_usage(invoke, bundle):
    assert invoke("build-engine", bundle.path, "--runtime", "openvino").code == 2


def test_a_missing_precision_is_made_where_onnx_is(invoke, copied):
    pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")
    call = ("build-engine", copied, "--runtime", "tensorrt-rtx", "--compute-capability", "86")
    assert invoke(*call, "--fp16").code == 0
    bundle = Bundle.open(copied)
    assert {graph.precision for graph in bundle.manifest.graphs} == {"fp32", "fp16"}
    assert [engine.precision for engine in bundle.engines()] == ["fp16", "fp16"]


_BUILD_WITHOUT = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnx_graphsurgeon", "onnxruntime"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from sacvit_deploy.cli import main

main(["build-engine", sys.argv[1], "--fp16", "--runtime=tensorrt-rtx", "--compute-capability=86"])
"""


def test_it_builds_where_torch_and_onnx_are_not_installed(bundle):
    """As on a Jetson: the graphs come from another machine."""
    command = [sys.executable, "-c", _BUILD_WITHOUT, str(bundle.path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert len(Bundle.open(bundle.path).engines(precision="fp16")) == 2
