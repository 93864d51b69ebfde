from __future__ import annotations

import ctypes
import dataclasses
import platform
import tempfile
from pathlib import Path

import pytest

from sacvit_deploy.engines import machine
from sacvit_deploy.engines.machine import (
    Gpu,
    Machine,
    cache_folder,
    free_memory_bytes,
    gpu_free_bytes,
    jetson_release,
    this_machine,
)


class FakeDriver:
    """libcuda as it answers on a board with one GPU."""

    def __init__(self, status: int = 0) -> None:
        self._status = status
        self.contexts = 0
        self.memory_status = 0
        self.count = 1
        self.current: int | None = None

    def cuInit(self, flags):  # noqa: N802  its own name, here and below
        return self._status

    def cuDriverGetVersion(self, version):  # noqa: N802
        return self._put(version, ctypes.c_int, 12060)

    def cuDeviceGetCount(self, count):  # noqa: N802
        return self._put(count, ctypes.c_int, self.count)

    def cuDeviceGet(self, device, index):  # noqa: N802
        return self._put(device, ctypes.c_int, index)

    def cuDeviceGetName(self, name, size, device):  # noqa: N802
        name.value = b"Orin"
        return 0

    def cuDeviceTotalMem_v2(self, size, device):  # noqa: N802
        return self._put(size, ctypes.c_size_t, 8 << 30)

    def cuDeviceGetAttribute(self, value, attribute, device):  # noqa: N802
        return self._put(value, ctypes.c_int, {75: 8, 76: 7, 16: 8}[attribute])

    def cuCtxGetDevice(self, device):  # noqa: N802
        if self.current is None:
            return 201
        return self._put(device, ctypes.c_int, self.current)

    def cuDevicePrimaryCtxRetain(self, context, device):  # noqa: N802
        self.contexts += 1
        return self._put(context, ctypes.c_void_p, 1)

    def cuCtxPushCurrent_v2(self, context):  # noqa: N802
        return 0

    def cuMemGetInfo_v2(self, free, total):  # noqa: N802
        self._put(total, ctypes.c_size_t, 8 << 30)
        return self._put(free, ctypes.c_size_t, 3 << 30) or self.memory_status

    def cuCtxPopCurrent_v2(self, context):  # noqa: N802
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device):  # noqa: N802
        self.contexts -= 1
        return 0

    @staticmethod
    def _put(reference, kind, value) -> int:
        ctypes.cast(reference, ctypes.POINTER(kind))[0] = value
        return 0


def drive(monkeypatch, driver: FakeDriver | None) -> None:
    def load(name):
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)


def test_the_driver_is_asked(monkeypatch):
    drive(monkeypatch, FakeDriver())
    found = this_machine()
    assert found.driver_cuda == "12.6"
    assert found.gpus == (Gpu("Orin", "8.7", 8 << 30, 8),)
    assert found.current_gpu == found.gpus[0]


def test_the_gpu_that_a_program_chose_is_the_current_one(monkeypatch):
    driver = FakeDriver()
    drive(monkeypatch, driver)
    driver.count, driver.current = 2, 1
    found = this_machine()
    assert (len(found.gpus), found.current) == (2, 1)
    assert Machine(found.os, None, ()).current_gpu is None


@pytest.mark.parametrize("driver", [None, FakeDriver(status=100)], ids=["none", "no GPU behind it"])
def test_without_a_driver_there_is_no_gpu(monkeypatch, driver):
    drive(monkeypatch, driver)
    found = this_machine()
    assert found == Machine(found.os, None, ())


def test_the_system_is_named(monkeypatch):
    drive(monkeypatch, None)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert this_machine().os == "linux-aarch64"


@pytest.mark.parametrize(
    ("text", "linux", "jetpack"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "36.4.3", "6.2"),
        ("# R36 (release), REVISION: 4.0, GCID: 1", "36.4.0", "6.1"),
        ("# R36 (release), REVISION: 3.0, GCID: 1", "36.3.0", "6.0"),
        ("# R35 (release), REVISION: 4.1, GCID: 1", "35.4.1", "5.1"),
        ("# R38 (release), REVISION: 2.0, GCID: 1", "38.2.0", "7.0"),
        ("# R38 (release), REVISION: 4.0, GCID: 1", "38.4.0", "7.1"),
        ("# R39 (release), REVISION: 2.0, GCID: 1", "39.2.0", "7.2"),
        ("# R40 (release), REVISION: 1.0, GCID: 1", "40.1.0", None),
        ("something else", "", None),
    ],
)
def test_a_jetson_is_known_by_its_release(monkeypatch, tmp_path, text, linux, jetpack):
    (tmp_path / "release").write_text(text)
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson Orin Nano\0")
    monkeypatch.setattr(machine, "_TEGRA_RELEASE", tmp_path / "release")
    monkeypatch.setattr(machine, "_BOARD", tmp_path / "model")
    board = jetson_release()
    assert board is not None
    assert (board.board, board.linux, board.jetpack) == ("NVIDIA Jetson Orin Nano", linux, jetpack)


def test_another_machine_is_no_jetson(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_TEGRA_RELEASE", tmp_path / "none")
    assert jetson_release() is None


def test_free_memory_is_read(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    monkeypatch.setattr(machine, "_MEMORY", tmp_path / "meminfo")
    assert free_memory_bytes() == 2 << 20
    monkeypatch.setattr(machine, "_MEMORY", tmp_path / "none")
    assert free_memory_bytes() is None


def test_free_memory_of_a_gpu_is_asked_of_the_driver(monkeypatch):
    driver = FakeDriver()
    drive(monkeypatch, driver)
    assert gpu_free_bytes(0) == 3 << 30
    driver.memory_status = 1
    assert gpu_free_bytes(0) is None
    assert driver.contexts == 0
    drive(monkeypatch, None)
    assert gpu_free_bytes(0) is None


@pytest.mark.gpu
def test_a_real_driver_answers():
    found = this_machine()
    assert found.driver_cuda is not None
    assert all(gpu.memory_bytes > 1 << 30 for gpu in found.gpus)
    free = gpu_free_bytes(0)
    assert free is not None
    assert 0 < free < found.gpus[0].memory_bytes


def test_it_belongs_to_the_files_of_one_bundle(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folder = cache_folder(bundle)
    assert folder.parent == tmp_path / "caches" / "sacvit-deploy"
    assert cache_folder(bundle) == folder
    fewer = dict(list(bundle.manifest.files.items())[1:])
    manifest = dataclasses.replace(bundle.manifest, files=fewer)
    assert cache_folder(dataclasses.replace(bundle, manifest=manifest)) != folder


def test_who_has_no_home_has_a_cache_all_the_same(bundle, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder(bundle).is_relative_to(Path(tempfile.gettempdir()) / "sacvit-deploy")
