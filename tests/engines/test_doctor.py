from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType

import pytest

from sacvit_deploy.engines import doctor
from sacvit_deploy.engines.doctor import Finding, examine
from sacvit_deploy.engines.machine import Gpu, Jetson, Machine

ORIN = Machine("linux-aarch64", "12.6", (Gpu("Orin", "8.7", 8 << 30),))


@pytest.fixture
def look(monkeypatch):
    """Examine a machine that is described by the arguments."""

    def call(machine=Machine("linux-x86_64", None, ()), jetson=None, **modules) -> dict:  # noqa: B008
        monkeypatch.setattr(doctor, "this_machine", lambda: machine)
        monkeypatch.setattr(doctor, "jetson_release", lambda: jetson)
        for name, version in modules.items():
            module = None if version is None else ModuleType(name)
            if module is not None:
                module.__dict__["__version__"] = version
            monkeypatch.setitem(sys.modules, name, module)
        return {finding.name: finding for finding in examine()}

    return call


def test_everything_is_looked_for(look):
    assert set(look()) == {
        "python", "cuda-driver", "gpu", "jetpack", "tensorrt", "tensorrt-rtx", "onnxruntime",
        "torch", "onnx", "onnx-graphsurgeon", "cuda-python", "memory", "disk",
    }  # fmt: skip


def test_what_is_missing_comes_with_a_command(look):
    found = look(tensorrt=None, tensorrt_rtx=None, onnxruntime=None)
    assert "pip install 'sacvit-deploy[tensorrt]'" in str(found["tensorrt"].fix)
    assert "pip install 'sacvit-deploy[tensorrt-rtx]'" in str(found["tensorrt-rtx"].fix)
    assert "pip install onnxruntime" in str(found["onnxruntime"].fix)
    assert found["onnxruntime"].facts == {"version": None, "providers": []}
    assert found["cuda-driver"].fix is not None


def test_a_library_is_known_without_importing_it(look, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert look()["torch"].facts["version"] is not None

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    found = look()
    assert str(found["torch"].fix).endswith("pip install 'sacvit-deploy[export]'")
    assert str(found["cuda-python"].fix).endswith("pip install cuda-python")
    assert str(look(ORIN)["cuda-python"].fix).endswith("pip install 'cuda-python==12.*'")


def test_a_gpu_is_described(look):
    found = look(ORIN)
    assert found["cuda-driver"].found == "up to CUDA 12.6"
    assert found["gpu"].found == "Orin, compute capability 8.7, 8.0 GiB"
    assert found["gpu"].facts["gpus"][0]["compute_capability"] == "8.7"


@pytest.mark.parametrize(("jetpack", "is_old"), [("5.1", True), ("6.0", True), ("6.2", False)])
def test_an_old_jetpack_is_told_what_it_lacks(look, jetpack, is_old):
    found = look(ORIN, Jetson("Orin Nano", "36.4.3", jetpack))["jetpack"]
    assert found.found == f"{jetpack} (Jetson Linux 36.4.3), Orin Nano"
    assert (found.fix is not None) is is_old


def test_a_jetson_gets_its_own_commands(look):
    found = look(jetson=Jetson("", "", None))
    assert "sudo apt install nvidia-jetpack" in str(found["cuda-driver"].fix)


def test_an_old_tensorrt_is_said_to_be_one(look):
    found = look(tensorrt="8.6.2")["tensorrt"]
    assert "8.6.2 is installed; 10.3 or later" in found.found
    assert found.facts == {"version": None}


def test_little_memory_and_disk_are_pointed_out(look, monkeypatch):
    monkeypatch.setattr(doctor, "free_memory_bytes", lambda: 1 << 28)
    monkeypatch.setattr(doctor, "_NEEDED_DISK", 1 << 60)
    found = look()
    assert "swap" in str(found["memory"].fix)
    assert found["disk"].fix is not None
    monkeypatch.setattr(doctor, "free_memory_bytes", lambda: None)
    assert look()["memory"].found == "not known"


def test_a_finding_is_one_flat_mapping():
    finding = Finding("gpu", "none", facts={"gpus": []})
    assert finding.to_dict() == {"found": "none", "fix": None, "gpus": []}
