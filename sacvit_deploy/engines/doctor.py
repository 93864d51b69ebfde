"""What this machine can do, and the command for everything that is missing."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sacvit_deploy.engines.machine import (
    free_memory_bytes,
    gpu_free_bytes,
    jetson_release,
    this_machine,
)
from sacvit_deploy.engines.onnxruntime_session import (
    CUDA,
    TENSORRT_RTX,
    available_providers,
    onnxruntime,
    unavailable_providers,
)
from sacvit_deploy.engines.tensorrt_library import (
    RUNTIMES,
    library_cuda,
    load_flavour,
    version_numbers,
)
from sacvit_deploy.errors import SacvitDeployError
from sacvit_deploy.libraries import version

if TYPE_CHECKING:
    from types import ModuleType

    from sacvit_deploy.engines.machine import Gpu, Machine
    from sacvit_deploy.spec import EngineBackend

_GIB = 1 << 30
_NEEDED_MEMORY = 2 * _GIB
_NEEDED_DISK = 2 * _GIB

# What TensorRT-RTX 1.7 builds these networks for. Not among them: Orin (8.7), H100 and H200 (9.0).
_RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")

# What a distribution is installed for, and the extra that brings it.
_LIBRARIES = {
    "torch": ("export", "to export and train"),
    "onnx": ("export", "to export, and to make FP16 and INT8 graphs"),
    "onnx-graphsurgeon": ("export", "to export, and to make FP16 and INT8 graphs"),
    "cuda-python": ("tensorrt", "to run engines"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        name: What.
        found: What was found, in words.
        fix: What to do if it is missing; None if there is nothing to do.
        facts: The same for a machine to read.
    """

    name: str
    found: str
    fix: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-ready mapping."""
        return {"found": self.found, "fix": self.fix, **self.facts}


def examine() -> list[Finding]:
    """Look at this machine; nothing is changed, and nothing missing is an error."""
    machine = this_machine()
    return [
        _python(),
        _driver(machine),
        _gpus(machine),
        _jetson(),
        *(_flavour(name, machine) for name in RUNTIMES),
        _onnxruntime(machine),
        *(_library(name, machine) for name in _LIBRARIES),
        _memory(),
        _disk(),
    ]


def _python() -> Finding:
    release = platform.python_version()
    system = f"{platform.system()}-{platform.machine()}".lower()
    return Finding(
        "python", f"{release} on {platform.platform()}", facts={"version": release, "os": system}
    )


def _driver(machine: Machine) -> Finding:
    facts = {"cuda": machine.driver_cuda}
    if machine.driver_cuda:
        return Finding("cuda-driver", f"up to CUDA {machine.driver_cuda}", facts=facts)
    if jetson_release():
        fix = "It comes with JetPack: sudo apt install nvidia-jetpack, and restart"
    elif sys.platform.startswith("linux"):
        fix = "With an NVIDIA GPU: sudo ubuntu-drivers install (or your distribution's way)"
    else:
        fix = "With an NVIDIA GPU, install the driver from NVIDIA's download page"
    return Finding("cuda-driver", "none; bundles run on the CPU", fix, facts)


def _gpus(machine: Machine) -> Finding:
    free = [gpu_free_bytes(index) for index in range(len(machine.gpus))]
    shown = [
        f"{gpu.name}, compute capability {gpu.compute_capability}, {_gpu_memory(gpu, left)}"
        for gpu, left in zip(machine.gpus, free, strict=True)
    ]
    facts = {
        "gpus": [
            {
                "name": gpu.name,
                "compute_capability": gpu.compute_capability,
                "memory_bytes": gpu.memory_bytes,
                "free_bytes": left,
            }
            for gpu, left in zip(machine.gpus, free, strict=True)
        ]
    }
    return Finding("gpu", "; ".join(shown) or "none that CUDA can use", facts=facts)


def _gpu_memory(gpu: Gpu, free: int | None) -> str:
    total = f"{gpu.memory_bytes / _GIB:.1f} GiB"
    return total if free is None else f"{free / _GIB:.1f} of {total} free"


def _jetson() -> Finding:
    board = jetson_release()
    if board is None:
        return Finding("jetpack", "none; this is not a Jetson", facts={"version": None})
    found = f"{board.jetpack or 'not known'} (Jetson Linux {board.linux}), {board.board}"
    facts = {"version": board.jetpack, "jetson_linux": board.linux, "board": board.board}
    old = board.jetpack is not None and version_numbers(board.jetpack) < (6, 1)
    fix = "TensorRT 10.3 or later comes with JetPack 6.1: install that" if old else None
    return Finding("jetpack", found.rstrip(", "), fix, facts)


def _flavour(name: EngineBackend, machine: Machine) -> Finding:
    gpu = machine.current_gpu
    here = gpu.compute_capability if gpu else None
    useless = name == "tensorrt-rtx" and here is not None and here not in _RTX_CAPABILITIES
    remark = f" (has no engines for this GPU, compute capability {here})" if useless else ""
    try:
        flavour = load_flavour(name)
    except SacvitDeployError as error:
        fix = None if useless else error.fix
        return Finding(name, error.problem + remark, fix, {"version": None})
    cuda = library_cuda(name)
    made_for = f", for CUDA {cuda}" if cuda else ""
    facts = {"version": flavour.version, "cuda": cuda}
    return Finding(name, f"{flavour.version}{made_for}{remark}", facts=facts)


def _onnxruntime(machine: Machine) -> Finding:
    try:
        ort = onnxruntime()
    except SacvitDeployError as error:
        return Finding("onnxruntime", error.problem, error.fix, {"version": None, "providers": []})
    providers = available_providers(ort)
    return Finding(
        "onnxruntime",
        f"{ort.__version__} with {', '.join(providers)}",
        _provider_fix(ort, machine),
        {"version": str(ort.__version__), "providers": providers},
    )


def _provider_fix(ort: ModuleType, machine: Machine) -> str | None:
    """How ONNX Runtime gets to the GPU that is there; None if it does, or on a Jetson (engines)."""
    gpu, missing = machine.current_gpu, unavailable_providers(ort)
    if gpu is None or jetson_release() or not {CUDA, TENSORRT_RTX} <= missing.keys():
        return None
    fix = (
        "It does not use the GPU: pip uninstall onnxruntime, then pip install "
        "'onnxruntime-gpu[cuda,cudnn]'"
    )
    if gpu.compute_capability in _RTX_CAPABILITIES:
        fix += f". Or keep it, and add TensorRT-RTX. {missing[TENSORRT_RTX]}"
    return fix


def _library(name: str, machine: Machine) -> Finding:
    extra, purpose = _LIBRARIES[name]
    found = version(name)
    if found is None:
        package = f"'sacvit-deploy[{extra}]'"
        if name == "cuda-python":  # the extra would bring TensorRT too
            major = (machine.driver_cuda or "").partition(".")[0]
            package = f"'cuda-python=={major}.*'" if major else name
        fix = f"Needed {purpose}: pip install {package}"
        return Finding(name, "not installed", fix, {"version": None})
    return Finding(name, found, facts={"version": found})


def _memory() -> Finding:
    free = free_memory_bytes()
    if free is None:
        return Finding("memory", "not known", facts={"free_bytes": None})
    fix = (
        "Building an engine may need more: close programs, or add swap"
        if (free < _NEEDED_MEMORY)
        else None
    )
    return Finding("memory", f"{free / _GIB:.1f} GiB free", fix, {"free_bytes": free})


def _disk() -> Finding:
    try:
        free = shutil.disk_usage(Path.cwd()).free
    except OSError as error:
        where = "Go to a folder that exists and can be read"
        return Finding("disk", f"not known: {error}", where, {"free_bytes": None})
    fix = "Engines may need more: free some space" if free < _NEEDED_DISK else None
    return Finding("disk", f"{free / _GIB:.1f} GiB free here", fix, {"free_bytes": free})
