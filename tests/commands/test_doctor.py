from __future__ import annotations

import importlib.metadata
import json
import sys
from types import ModuleType

import pytest

from sacvit_deploy.commands import doctor
from sacvit_deploy.commands.doctor import Finding, examine
from sacvit_deploy.engines.machine import Gpu, Jetson, Machine
from sacvit_deploy.engines.onnxruntime_providers import CUDA, TENSORRT_RTX

ORIN = Machine("linux-aarch64", "12.6", (Gpu("Orin", "8.7", 8 << 30),))
RTX = Machine("linux-x86_64", "13.0", (Gpu("RTX 4090", "8.9", 24 << 30),))
A100 = Machine("linux-x86_64", "13.0", (Gpu("A100", "8.0", 40 << 30),))
BLACKWELL = Machine("linux-x86_64", "13.0", (Gpu("RTX 5090", "12.0", 32 << 30),))
NO_DRIVER = Machine("linux-x86_64", None, ())
H200 = Machine("linux-x86_64", "13.0", (Gpu("H200", "9.0", 139 << 30),))


def test_it_prints_a_line_for_each_thing(invoke):
    ran = invoke("doctor")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].startswith("python ")
    for name in ("cuda-driver", "gpu", "jetpack", "tensorrt", "tensorrt-rtx", "onnxruntime"):
        assert any(line.startswith(name) for line in lines)


def test_json_has_the_same(invoke):
    document = json.loads(invoke("doctor", "--json").out)
    assert "CPUExecutionProvider" in document["onnxruntime"]["providers"]
    assert {"found", "fix", "free_bytes"} == set(document["memory"])


@pytest.fixture
def look(monkeypatch):
    """Examine a machine that is described by the arguments."""

    def call(machine=NO_DRIVER, jetson=None, **modules) -> dict:
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
        "openvino", "torch", "onnx", "onnx-graphsurgeon", "cuda-bindings", "polygraphy", "memory",
        "disk",
    }  # fmt: skip


def test_what_is_missing_comes_with_a_command(look):
    found = look(tensorrt=None, tensorrt_rtx=None, onnxruntime=None)
    assert "pip install 'sacvit-deploy[tensorrt]'" in str(found["tensorrt"].fix)
    assert "pip install 'sacvit-deploy[tensorrt-rtx]'" in str(found["tensorrt-rtx"].fix)
    assert "pip install onnxruntime" in str(found["onnxruntime"].fix)
    assert found["onnxruntime"].facts == {"version": None, "providers": []}
    assert found["cuda-driver"].fix is not None


def test_a_library_is_known_without_importing_it(look, monkeypatch):
    for name in ("torch", "polygraphy"):  # another test may have imported it
        monkeypatch.setitem(sys.modules, name, None)
    assert look()["torch"].facts["version"] is not None

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    found = look()
    assert str(found["torch"].fix).endswith("pip install 'sacvit-deploy[export]'")
    assert str(found["cuda-bindings"].fix).endswith("pip install cuda-bindings")
    assert found["polygraphy"].fix == "Needed to build engines: pip install polygraphy"
    assert str(look(ORIN)["cuda-bindings"].fix).endswith("pip install 'cuda-bindings==12.*'")


ON_CUDA_11, ON_CUDA_12, ON_CUDA_13 = (
    Machine("linux-x86_64", cuda, (Gpu("RTX 4090", "8.9", 24 << 30),))
    for cuda in ("11.8", "12.8", "13.1")
)


@pytest.mark.parametrize(
    ("machine", "made_for", "fix"),
    [
        (ON_CUDA_13, "13", None),
        (ON_CUDA_13, "12", None),
        (ON_CUDA_12, "12", None),
        (ON_CUDA_12, None, None),
        (NO_DRIVER, "13", None),
        (
            ON_CUDA_12,
            "13",
            "Update the driver, or keep it: pip uninstall tensorrt tensorrt-cu13 "
            "tensorrt-cu13-bindings tensorrt-cu13-libs, then pip install "
            "'sacvit-deploy[tensorrt-cu12]'",
        ),
        (ON_CUDA_11, "12", "Update the driver to one of CUDA 12 or later"),
    ],
)
def test_a_library_for_a_newer_cuda_than_the_drivers_is_noticed(
    look, monkeypatch, machine, made_for, fix
):
    monkeypatch.setattr(doctor, "library_cuda", lambda _: made_for)
    found = look(machine, tensorrt="11.4.0")["tensorrt"]
    assert found.fix == fix
    assert ("cannot run it" in found.found) is (fix is not None)
    assert found.facts == {"version": "11.4.0", "cuda": made_for}


@pytest.mark.parametrize(
    ("machine", "installed", "fix"),
    [
        (ON_CUDA_13, "13.4.4", None),
        (ON_CUDA_13, "12.9.1", None),
        (ON_CUDA_12, "12.9.1", None),
        (NO_DRIVER, "13.4.4", None),
        (ON_CUDA_12, "13.4.4", "pip install 'cuda-bindings==12.*'"),
    ],
)
def test_cuda_bindings_for_a_newer_cuda_than_the_drivers_are_noticed(
    look, monkeypatch, machine, installed, fix
):
    monkeypatch.setattr(doctor, "version", lambda _: installed)
    found = look(machine)["cuda-bindings"]
    assert found.fix == fix
    assert ("the driver has CUDA 12.8 and cannot run it" in found.found) is (fix is not None)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(("machine", "ending"), [(ON_CUDA_12, "-cu12"), (ON_CUDA_13, "")])
def test_the_extra_for_this_driver_is_named(look, name, machine, ending):
    found = look(machine, tensorrt=None, tensorrt_rtx=None)[name]
    assert str(found.fix).endswith(f"pip install 'sacvit-deploy[{name}{ending}]'")


def test_a_gpu_is_described(look, monkeypatch):
    monkeypatch.setattr(doctor, "gpu_free_bytes", lambda _: None)
    found = look(ORIN)
    assert found["cuda-driver"].found == "up to CUDA 12.6"
    assert found["gpu"].found == "Orin, compute capability 8.7, 8.0 GiB"
    monkeypatch.setattr(doctor, "gpu_free_bytes", lambda _: 3 << 29)
    found = look(ORIN)
    assert found["gpu"].found == "Orin, compute capability 8.7, 1.5 of 8.0 GiB free"
    assert found["gpu"].facts["gpus"][0]["free_bytes"] == 3 << 29
    assert found["gpu"].facts["gpus"][0]["compute_capability"] == "8.7"


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize(
    ("machine", "is_of_use"),
    [(RTX, True), (H200, False), (ORIN, False), (Machine("linux-x86_64", None, ()), True)],
)
def test_a_library_that_is_of_no_use_here_is_not_recommended(look, installed, machine, is_of_use):
    found = look(machine, tensorrt_rtx="1.7.1" if installed else None)["tensorrt-rtx"]
    assert ("has no engines for this GPU" in found.found) is not is_of_use
    assert (found.fix is not None) is (is_of_use and not installed)


WITHOUT = {CUDA: "Built without it.", TENSORRT_RTX: "Not there: pip install plug-in."}


@pytest.mark.parametrize(
    ("machine", "jetson", "missing", "says"),
    [
        (RTX, None, [CUDA, TENSORRT_RTX], ["onnxruntime-gpu[cuda,", "plug-in"]),
        (A100, None, [CUDA, TENSORRT_RTX], ["onnxruntime-gpu[cuda,"]),
        (H200, None, [CUDA, TENSORRT_RTX], ["onnxruntime-gpu[cuda,"]),
        (BLACKWELL, None, [CUDA, TENSORRT_RTX], ["onnxruntime-gpu[cuda,", "plug-in"]),
        (RTX, None, [CUDA], None),
        (RTX, None, [TENSORRT_RTX], None),
        (ORIN, Jetson("Orin", "36.4.3", "6.2"), [CUDA, TENSORRT_RTX], None),
        (Machine("linux-x86_64", None, ()), None, [CUDA, TENSORRT_RTX], None),
    ],
)
def test_a_gpu_that_onnxruntime_does_not_use_comes_with_a_command(
    look, monkeypatch, machine, jetson, missing, says
):
    reasons = {name: WITHOUT[name] for name in missing}
    monkeypatch.setattr(doctor, "unavailable_providers", lambda _: reasons)
    fix = look(machine, jetson)["onnxruntime"].fix
    if says is None:
        assert fix is None
    else:
        assert all(part in str(fix) for part in says)
        assert ("plug-in" in str(fix)) is ("plug-in" in says)


@pytest.mark.parametrize(
    ("machine", "made_for", "fix"),
    [
        (ON_CUDA_13, "13.0", None),
        (ON_CUDA_13, "12.8", None),
        (ON_CUDA_12, "12.8", None),
        (ON_CUDA_12, "", None),
        (NO_DRIVER, "13.0", None),
        (
            ON_CUDA_12,
            "13.0",
            "Update the driver, or keep it: pip install 'onnxruntime-gpu[cuda,cudnn]<1.27'",
        ),
        (ON_CUDA_11, "12.8", "Update the driver"),
    ],
)
def test_an_onnxruntime_for_a_newer_cuda_than_the_drivers_is_noticed(
    look, monkeypatch, machine, made_for, fix
):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "cuda_version", made_for, raising=False)
    monkeypatch.setattr(doctor, "unavailable_providers", lambda _: {})
    found = look(machine)["onnxruntime"]
    assert found.fix == fix
    assert (f"made for CUDA {made_for}, and the driver" in found.found) is (fix is not None)
    assert found.facts["cuda"] == (made_for or None)


def test_the_onnxruntime_for_this_driver_is_named(look, monkeypatch):
    monkeypatch.setattr(doctor, "unavailable_providers", lambda _: WITHOUT)
    for machine, package in ((ON_CUDA_12, "cudnn]<1.27'"), (ON_CUDA_13, "cudnn]'")):
        assert f"'onnxruntime-gpu[cuda,{package}" in str(look(machine)["onnxruntime"].fix)


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


def test_a_working_folder_that_is_gone_is_no_traceback(look, monkeypatch, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    disk = look()["disk"]
    assert disk.found.startswith("not known: ")
    assert disk.fix is not None
    assert disk.facts == {"free_bytes": None}


def test_a_finding_is_one_flat_mapping():
    finding = Finding("gpu", "none", facts={"gpus": []})
    assert finding.to_dict() == {"found": "none", "fix": None, "gpus": []}
