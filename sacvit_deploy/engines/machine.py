"""What this machine is: operating system, CUDA driver, GPUs, Jetson; asked of the system itself.

No library is imported for it, so that it answers where none is installed.
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sacvit_deploy.bundle import Bundle


_TEGRA_RELEASE = Path("/etc/nv_tegra_release")
_BOARD = Path("/proc/device-tree/model")
_MEMORY = Path("/proc/meminfo")

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

# Numbers from cuda.h: CUdevice_attribute.
_CC_MAJOR, _CC_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: As the driver calls it.
        compute_capability: For example `8.6`.
        memory_bytes: All of its memory; on a Jetson, shared with the CPU.
    """

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True)
class Jetson:
    """A Jetson board.

    Attributes:
        board: Its name, empty if the system does not tell.
        linux: Release of Jetson Linux, for example `36.4.3`.
        jetpack: The JetPack that contains it, for example `6.2`; None if not known.
    """

    board: str
    linux: str
    jetpack: str | None


@dataclass(frozen=True)
class Machine:
    """What an engine has to have in common with a machine.

    Attributes:
        os: For example `linux-x86_64`.
        driver_cuda: Newest CUDA the driver supports, for example `12.6`; None without a driver.
        gpus: Those the driver shows.
        current: Index of the one that this thread uses; 0 unless the program chose another.
    """

    os: str
    driver_cuda: str | None
    gpus: tuple[Gpu, ...]
    current: int = 0

    @property
    def current_gpu(self) -> Gpu | None:
        """The GPU that libraries use unless told otherwise, if there is one."""
        return self.gpus[self.current] if self.gpus else None


def this_machine() -> Machine:
    """Ask the system and the CUDA driver."""
    name = f"{platform.system()}-{platform.machine()}".lower()
    driver = _driver()
    if driver is None:
        return Machine(name, None, ())
    return Machine(name, _driver_cuda(driver), _gpus(driver), _current(driver))


def jetson_release() -> Jetson | None:
    """The board this is, or None."""
    try:
        text = _TEGRA_RELEASE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"R(\d+)\D+REVISION:\s*([\d.]+)", text)
    linux = f"{found[1]}.{found[2]}" if found else ""
    numbers = tuple(int(part) for part in linux.split(".") if part)
    jetpack = next((name for first, name in _JETPACKS if numbers >= first), None)
    return Jetson(_board_name(), linux, jetpack)


def free_memory_bytes() -> int | None:
    """Memory the system can still hand out; None where it does not tell."""
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", _MEMORY.read_text(encoding="ascii"))
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def gpu_free_bytes(index: int) -> int | None:
    """Memory of a GPU that is free now; None where the driver does not tell.

    Asking starts CUDA on that GPU for a moment, which takes some hundred MiB of it and is not free.

    Args:
        index: Of `Machine.gpus`.
    """
    driver = _driver()
    if driver is None:
        return None
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), index)
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) != 0:
        return None
    try:
        driver.cuCtxPushCurrent_v2(context)
        status = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)
    return free.value if status == 0 else None


def _board_name() -> str:
    try:
        return _BOARD.read_text(encoding="utf-8", errors="replace").rstrip("\0\n")
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


def _driver_cuda(driver: Any) -> str | None:
    number = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _gpus(driver: Any) -> tuple[Gpu, ...]:
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_gpu(driver, index) for index in range(count.value))


def _current(driver: Any) -> int:
    """Where the CUDA context of this thread lies; without one, libraries begin with the first."""
    device = ctypes.c_int()
    return device.value if driver.cuCtxGetDevice(ctypes.byref(device)) == 0 else 0


def _gpu(driver: Any, index: int) -> Gpu:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    parts = []
    for attribute in (_CC_MAJOR, _CC_MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        parts.append(str(value.value))
    return Gpu(os.fsdecode(name.value), ".".join(parts), memory.value)


def cache_folder(bundle: Bundle) -> Path:
    """A folder that belongs to exactly the files of this bundle; it may not exist yet.

    A runtime tells its caches apart by the structure of a graph, so that two bundles with the same
    network and other weights would otherwise share one. The bundle's own folder may be read-only,
    and every file in it is covered by a hash.
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
