"""The `doctor` command: what this machine has, and how to get what it lacks."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from sacvit_deploy.commands import options
from sacvit_deploy.engines.machine import (
    X86_64,
    Machine,
    free_memory_bytes,
    gpu_free_bytes,
    jetson_release,
    this_machine,
)
from sacvit_deploy.engines.onnxruntime_providers import (
    CUDA,
    TENSORRT_RTX,
    available_providers,
    onnxruntime,
    rtx_plugin_runs_on,
    unavailable_providers,
)
from sacvit_deploy.engines.openvino_session import (
    available_devices,
    half_precision,
    openvino,
    release,
)
from sacvit_deploy.engines.tensorrt_library import (
    ENGINE_BACKENDS,
    RTX_CAPABILITIES,
    library_cuda,
    load_library,
    version_numbers,
)
from sacvit_deploy.errors import SacvitDeployError
from sacvit_deploy.libraries import version
from sacvit_deploy.spec import EngineBackend

_GIB = 1 << 30
_NEEDED_MEMORY = _NEEDED_DISK = 2 * _GIB

# A distribution, the extra that brings it, and its purpose.
_DISTRIBUTIONS = {
    "torch": ("export", "to export and train"),
    "onnx": ("export", "to export, and to make FP16 and INT8 graphs"),
    "onnx-graphsurgeon": ("export", "to export, and to make FP16 and INT8 graphs"),
    "cuda-bindings": ("tensorrt", "to run engines"),
    "polygraphy": ("tensorrt", "to build engines"),
}

# Endings of the names of the wheels that a library comes in; CUDA stands for the major version.
_WHEELS = ("-cuCUDA", "-cuCUDA-bindings", "-cuCUDA-libs")


@click.command("doctor")
@options.json_option
def command(as_json: bool) -> None:
    """List what this machine has, and how to get what is missing.

    \b
    Example:
      sacvit-deploy doctor
    """
    findings = examine()
    if as_json:
        options.echo_json({finding.name: finding.to_dict() for finding in findings})
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        click.echo(f"{finding.name:<{width}}  {finding.found}")
        if finding.fix:
            click.echo(f"{'':<{width}}  -> {finding.fix}")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: The thing that was looked for.
        found: The result, in words.
        facts: The result as JSON-ready values.
        fix: The next step; None if there is none.
    """

    name: str
    found: str
    facts: dict[str, Any]
    fix: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {"found": self.found, "fix": self.fix, **self.facts}


def examine() -> list[Finding]:
    """Check this machine; nothing is changed, and nothing missing is an error."""
    machine = this_machine()
    return [
        _python(),
        _driver(machine),
        _gpus(machine),
        _jetson(),
        *(_engine_library(name, machine) for name in ENGINE_BACKENDS),
        _onnxruntime(machine),
        _openvino(),
        *(_distribution(name, machine) for name in _DISTRIBUTIONS),
        _memory(),
        _disk(),
    ]


def _python() -> Finding:
    release = platform.python_version()
    facts = {"version": release, "os": f"{platform.system()}-{platform.machine()}".lower()}
    return Finding("python", f"{release} on {platform.platform()}", facts)


def _driver(machine: Machine) -> Finding:
    facts = {"cuda": machine.driver_cuda}
    if machine.driver_cuda:
        return Finding("cuda-driver", f"up to CUDA {machine.driver_cuda}", facts)
    fix = "With an NVIDIA GPU, install the driver from NVIDIA's download page"
    if jetson_release():
        fix = "It comes with JetPack: sudo apt install nvidia-jetpack, and restart"
    elif sys.platform.startswith("linux"):
        fix = "With an NVIDIA GPU: sudo ubuntu-drivers install (or your distribution's way)"
    return Finding("cuda-driver", "none; bundles run on the CPU", facts, fix)


def _gpus(machine: Machine) -> Finding:
    shown, facts = [], []
    for index, gpu in enumerate(machine.gpus):
        free, memory = gpu_free_bytes(index), f"{gpu.memory_bytes / _GIB:.1f} GiB"
        if free is not None:
            memory = f"{free / _GIB:.1f} of {memory} free"
        shown.append(f"{gpu.name}, compute capability {gpu.compute_capability}, {memory}")
        facts.append({**asdict(gpu), "free_bytes": free})
    return Finding("gpu", "; ".join(shown) or "none that CUDA can use", {"gpus": facts})


def _jetson() -> Finding:
    board = jetson_release()
    if board is None:
        return Finding("jetpack", "none; this is not a Jetson", {"version": None})
    found = f"{board.jetpack or 'not known'} (Jetson Linux {board.linux}), {board.board}"
    facts = {"version": board.jetpack, "jetson_linux": board.linux, "board": board.board}
    old = board.jetpack is not None and version_numbers(board.jetpack) < (6, 1)
    fix = "TensorRT 10.3 or later comes with JetPack 6.1: install that" if old else None
    return Finding("jetpack", found.rstrip(", "), facts, fix)


def _engine_library(name: EngineBackend, machine: Machine) -> Finding:
    here = machine.current_gpu.compute_capability if machine.current_gpu else None
    useless = name == "tensorrt-rtx" and here is not None and here not in RTX_CAPABILITIES
    remark = f" (has no engines for this GPU, compute capability {here})" if useless else ""
    extra = f"{name}-cu12" if _driver_major(machine) == 12 else name
    try:
        library = load_library(name)
    except SacvitDeployError as error:
        fix = None if useless else error.fix.replace(f"[{name}]", f"[{extra}]")
        return Finding(name, error.problem + remark, {"version": None}, fix)
    cuda = library_cuda(name)
    made_for = f", for CUDA {cuda}" if cuda else ""
    facts = {"version": library.version, "cuda": cuda}
    found, fix = f"{library.version}{made_for}{remark}", None
    if cuda and not useless and _is_too_new(cuda, machine):
        wheels = " ".join(f"{name}{part}" for part in ("", *_WHEELS)).replace("CUDA", cuda)
        found += f"; the driver has CUDA {machine.driver_cuda} and cannot run it"
        fix = f"Update the driver{_or_install(f'pip uninstall {wheels}', extra, machine)}"
    return Finding(name, found, facts, fix)


def _driver_major(machine: Machine) -> int | None:
    """Newest major version of CUDA that the driver supports; None without a driver."""
    return version_numbers(machine.driver_cuda)[0] if machine.driver_cuda else None


def _is_too_new(version: str, machine: Machine) -> bool:
    """Whether something made for a version of CUDA needs a newer driver.

    A driver runs what was made for its own major version or an older one.
    """
    newest = _driver_major(machine)
    return newest is not None and version_numbers(version)[0] > newest


def _or_install(uninstall: str, extra: str, machine: Machine) -> str:
    """The way without a new driver, as the end of a sentence; none for a driver before CUDA 12."""
    if _driver_major(machine) != 12:
        return " to one of CUDA 12 or later"
    return f", or keep it: {uninstall}, then pip install 'sacvit-deploy[{extra}]'"


def _onnxruntime(machine: Machine) -> Finding:
    try:
        ort = onnxruntime()
    except SacvitDeployError as error:
        return Finding("onnxruntime", error.problem, {"version": None, "providers": []}, error.fix)
    providers = available_providers(ort)
    found = f"{ort.__version__} with {', '.join(providers)}"
    cuda = getattr(ort, "cuda_version", None) or None
    facts = {"version": str(ort.__version__), "providers": providers, "cuda": cuda}
    fix = _provider_fix(ort, machine)
    if cuda and _is_too_new(cuda, machine):
        found += f"; made for CUDA {cuda}, and the driver has CUDA {machine.driver_cuda}"
        fix = "Update the driver"
        if _driver_major(machine) == 12:
            fix += f", or keep it: pip install {_onnxruntime_gpu(machine)}"
    return Finding("onnxruntime", found, facts, fix)


def _onnxruntime_gpu(machine: Machine) -> str:
    """The package with CUDA for a driver; from 1.27 on it is made for CUDA 13."""
    bound = "<1.27" if _driver_major(machine) == 12 else ""
    return f"'onnxruntime-gpu[cuda,cudnn]{bound}'"


def _openvino() -> Finding:
    try:
        library = openvino()
    except SacvitDeployError as error:
        # Nothing lacks it, but INT8 is faster with it.
        fix = error.fix if platform.machine().lower() in X86_64 else None
        return Finding("openvino", error.problem, {"version": None, "devices": {}}, fix)
    devices = available_devices(library)
    shown = ", ".join(f"{name} ({what})" for name, what in devices.items())
    halves = {name: half_precision(library, name) for name in devices}
    facts = {"version": release(library), "devices": devices, "half_precision": halves}
    return Finding("openvino", f"{release(library)} with {shown}", facts)


def _provider_fix(ort: ModuleType, machine: Machine) -> str | None:
    """How ONNX Runtime can use the GPU; None if it does, and on a Jetson, which runs engines."""
    gpu, missing = machine.current_gpu, unavailable_providers(ort)
    if gpu is None or jetson_release() or not {CUDA, TENSORRT_RTX} <= missing.keys():
        return None
    fix = (
        "It does not use the GPU: pip uninstall onnxruntime, then pip install "
        f"{_onnxruntime_gpu(machine)}"
    )
    if rtx_plugin_runs_on(gpu.compute_capability):
        fix += f". Or keep it, and add TensorRT-RTX. {missing[TENSORRT_RTX]}"
    return fix


def _distribution(name: str, machine: Machine) -> Finding:
    extra, purpose = _DISTRIBUTIONS[name]
    package = f"'sacvit-deploy[{extra}]'"
    if name == "polygraphy":  # the extra would bring TensorRT too
        package = name
    if name == "cuda-bindings":  # and so it would here
        major = _driver_major(machine)
        package = f"'{name}=={major}.*'" if major else name
    if found := version(name):
        if name != "cuda-bindings" or not _is_too_new(found, machine):
            return Finding(name, found, {"version": found})
        shown = f"{found}; the driver has CUDA {machine.driver_cuda} and cannot run it"
        return Finding(name, shown, {"version": found}, f"pip install {package}")
    fix = f"Needed {purpose}: pip install {package}"
    return Finding(name, "not installed", {"version": None}, fix)


def _memory() -> Finding:
    free = free_memory_bytes()
    if free is None:
        return Finding("memory", "not known", {"free_bytes": None})
    more = "Building an engine may need more: close programs, or add swap"
    fix = more if free < _NEEDED_MEMORY else None
    return Finding("memory", f"{free / _GIB:.1f} GiB free", {"free_bytes": free}, fix)


def _disk() -> Finding:
    try:
        free = shutil.disk_usage(Path.cwd()).free
    except OSError as error:
        where = "Go to a folder that exists and can be read"
        return Finding("disk", f"not known: {error}", {"free_bytes": None}, where)
    fix = "Engines may need more: free some space" if free < _NEEDED_DISK else None
    return Finding("disk", f"{free / _GIB:.1f} GiB free here", {"free_bytes": free}, fix)
