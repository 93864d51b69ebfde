"""This machine: operating system, CUDA driver, GPUs, Jetson, and a folder for caches.

It asks the system itself and imports no library, so it answers where none is installed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacvit_deploy.bundle import Bundle

_TEGRA_RELEASE = Path("/etc/nv_tegra_release")
_BOARD = Path("/proc/device-tree/model")
_MEMORY = Path("/proc/meminfo")
_PROCESS = Path("/proc/self/status")
_PROCESSORS = Path("/proc/cpuinfo")

# Jetson Linux release to the JetPack that contains it; the first that is not newer applies.
_JETPACKS: tuple[tuple[tuple[int, ...], str | None], ...] = (
    ((39, 3), None),  # newer than this list
    ((39, 0), "7.2"),
    ((38, 4), "7.1"),
    ((38, 2), "7.0"),
    ((36, 4, 3), "6.2"),
    ((36, 4), "6.1"),
    ((36, 0), "6.0"),
    ((35, 0), "5.1"),
    ((32, 0), "4"),
)

# Names of x86-64 in `platform.machine`, in lower case.
X86_64 = ("x86_64", "amd64")

# Numbers from cuda.h: CUdevice_attribute.
_CC_MAJOR, _CC_MINOR, _MULTIPROCESSORS = 75, 76, 16


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: Its name in the driver.
        compute_capability: For example `8.6`.
        memory_bytes: Total memory; a Jetson shares it with the CPU.
        multiprocessors: Number of its multiprocessors (SM); 0 if the driver does not tell.
    """

    name: str
    compute_capability: str
    memory_bytes: int
    multiprocessors: int = 0


@dataclass(frozen=True)
class Jetson:
    """A Jetson board.

    Attributes:
        board: Its name; empty if the system does not tell.
        linux: Release of Jetson Linux, for example `36.4.3`.
        jetpack: The JetPack that contains it, for example `6.2`; None if not known.
    """

    board: str
    linux: str
    jetpack: str | None


@dataclass(frozen=True)
class Machine:
    """The properties of a machine that an engine depends on.

    Attributes:
        os: For example `linux-x86_64`.
        driver_cuda: Newest CUDA the driver supports, for example `12.6`; None without a driver.
        gpus: The GPUs that the driver shows.
        current: Index of this thread's GPU; 0 unless the program chose another.
    """

    os: str
    driver_cuda: str | None
    gpus: tuple[Gpu, ...]
    current: int = 0

    @property
    def current_gpu(self) -> Gpu | None:
        """The GPU that libraries use by default, if there is one."""
        return self.gpus[self.current] if self.gpus else None


def this_machine() -> Machine:
    """Describe this machine, from the system and the CUDA driver."""
    name = f"{platform.system()}-{platform.machine()}".lower()
    driver = _driver()
    if driver is None:
        return Machine(name, None, ())
    version = _number(driver.cuDriverGetVersion)
    cuda = None if version is None else f"{version // 1000}.{version % 1000 // 10}"
    gpus = tuple(_gpu(driver, index) for index in range(_number(driver.cuDeviceGetCount) or 0))
    # Without a CUDA context in this thread, libraries begin with the first GPU.
    return Machine(name, cuda, gpus, _number(driver.cuCtxGetDevice) or 0)


def jetson_release() -> Jetson | None:
    """The Jetson board this is, or None."""
    text = _text(_TEGRA_RELEASE)
    if not text:
        return None
    found = re.search(r"R(\d+)\D+REVISION:\s*([\d.]+)", text)
    linux = f"{found[1]}.{found[2]}" if found else ""
    numbers = tuple(int(part) for part in linux.split(".") if part)
    jetpack = next((name for first, name in _JETPACKS if numbers >= first), None)
    return Jetson(_text(_BOARD).rstrip("\0\n"), linux, jetpack)


def device_name(provider: str) -> str:
    """Name of what computes: the CPU for a provider that begins so, else the board or GPU."""
    board = jetson_release()
    if provider.startswith("CPU"):
        return _processor()
    if board is not None and board.board:
        return board.board
    gpu = this_machine().current_gpu
    return gpu.name if gpu else _processor()


def _processor() -> str:
    """Name of the processor if the system tells, else its architecture."""
    lines = _text(_PROCESSORS).splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    if names:
        return f"{names[0]}, {len(names)} cores"
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """CPU cores that this process may use, 1 or more."""
    usable = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(usable(0)) if usable else os.cpu_count() or 1


def free_memory_bytes() -> int | None:
    """Memory that programs can still allocate; None where the system does not tell."""
    found = re.search(r"MemAvailable:\s*(\d+) kB", _text(_MEMORY))
    return int(found[1]) * 1024 if found else None


def process_memory_bytes() -> tuple[int | None, int | None]:
    """Memory of this process, now and at most so far; None where the system does not tell.

    The standard library's largest value would count the process that started this one.
    """
    text = _text(_PROCESS)
    found = (re.search(rf"{name}:\s*(\d+) kB", text) for name in ("VmRSS", "VmHWM"))
    now, most = (int(match[1]) * 1024 if match else None for match in found)
    return now, most


def gpu_free_bytes(index: int) -> int | None:
    """Free memory of one of `Machine.gpus`; None where the driver does not tell.

    This starts CUDA on the GPU for a moment, which takes time and some hundred MiB.
    """
    driver = _driver()
    if driver is None:
        return None
    device, context = _number(driver.cuDeviceGet, index), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) != 0:
        return None
    try:
        driver.cuCtxPushCurrent_v2(context)
        status = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)
    return free.value if status == 0 else None


def _text(file: Path) -> str:
    """Content of a system file; empty where there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _driver() -> Any:
    """The CUDA driver, initialised; None if there is none, or no GPU behind it."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _number(function: Any, *arguments: Any) -> int | None:
    """The number that a driver function writes to its first argument; None if it fails."""
    number = ctypes.c_int()
    return number.value if function(ctypes.byref(number), *arguments) == 0 else None


def _gpu(driver: Any, index: int) -> Gpu:
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(256)
    device = _number(driver.cuDeviceGet, index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major, minor, multiprocessors = (
        _number(driver.cuDeviceGetAttribute, attribute, device)
        for attribute in (_CC_MAJOR, _CC_MINOR, _MULTIPROCESSORS)
    )
    text = os.fsdecode(name.value)
    return Gpu(text, f"{major}.{minor}", memory.value, multiprocessors or 0)


def cache_folder(bundle: Bundle) -> Path:
    """A folder that belongs to exactly the files of this bundle; it may not exist yet.

    A backend tells its caches apart by the structure of a graph, so two bundles with the same
    network and other weights would share one. The bundle's own folder may be read-only, and every
    file in it is covered by a hash.
    """
    files = bundle.manifest.files
    digest = hashlib.sha256("".join(files[name].sha256 for name in sorted(files)).encode())
    return _user_caches() / "sacvit-deploy" / digest.hexdigest()[:24]


def _user_caches() -> Path:
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # no HOME and no such user, as in a container with a user id of its own
        return Path(tempfile.gettempdir())
