"""`cuda.bindings.runtime` for one imaginary GPU.

Device memory lies at addresses that no host array has. Work waits on its stream for a
synchronisation, and recorded work can be launched again. Only names of the real module exist; a
test compares them where it is installed.
"""

# ruff: noqa: N801, N802, N815  the names are CUDA's

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
import types
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

_FIRST_ADDRESS = 0x7F00_0000_0000
_ALIGNMENT = 256
# They may wait for the device.
_NOT_WHILE_RECORDING = {
    "cudaMalloc",
    "cudaFree",
    "cudaMallocHost",
    "cudaHostAlloc",
    "cudaFreeHost",
    "cudaStreamSynchronize",
}


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrIntegrated = 18


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


@dataclass
class Gpu:
    """State and history of the GPU.

    Attributes:
        capacity: Bytes it has.
        integrated: Whether it computes in the memory of the host.
        mapped: Host memory that it reads in place, by the address it has there.
        crossings: (direction, bytes) of every copy that was carried out: `in`, `out` or `within`.
        broken: Whether something was called that the recording at work does not survive.
        fail: Error code of the next call of a function, by its name.
        chosen: Its `ordinal` is the current device of this thread, 0 in a new one.
        home: The device its stream was made for.
    """

    capacity: int = 1 << 34
    integrated: bool = False
    mapped: dict[int, np.ndarray] = field(default_factory=dict)
    blocks: dict[int, np.ndarray] = field(default_factory=dict)
    pinned: dict[int, np.ndarray] = field(default_factory=dict)
    waiting: list[Any] = field(default_factory=list)
    recording: list[Any] | None = None
    broken: bool = False
    graphs: dict[int, list[Any]] = field(default_factory=dict)
    streams: set[int] = field(default_factory=set)
    launches: int = 0
    crossings: list[tuple[str, int]] = field(default_factory=list)
    fail: dict[str, cudaError_t] = field(default_factory=dict)
    handles: Any = field(default_factory=lambda: itertools.count(1))
    next_address: int = _FIRST_ADDRESS
    chosen: Any = field(default_factory=threading.local)
    home: int = 0

    @property
    def current(self) -> int:
        return getattr(self.chosen, "ordinal", 0)

    @property
    def used(self) -> int:
        return sum(block.nbytes for block in self.blocks.values())

    @property
    def is_untouched(self) -> bool:
        """Nothing is allocated, recorded or open."""
        return not (self.blocks or self.pinned or self.graphs or self.streams)

    def view(self, address: int, size: int) -> np.ndarray:
        """Bytes of device memory, or of memory mapped there, all within one block."""
        blocks = self.blocks | self.mapped
        starts = sorted(blocks)
        start = starts[bisect_right(starts, address) - 1]
        block = blocks[start]
        offset = address - start
        assert 0 <= offset <= offset + size <= block.nbytes, "outside the block"
        return block[offset : offset + size]

    def new_address(self, size: int) -> int:
        address = self.next_address
        self.next_address += -(-size // _ALIGNMENT) * _ALIGNMENT + _ALIGNMENT
        return address

    def put(self, work: Any) -> None:
        assert self.current == self.home, "another device is current in this thread"
        (self.waiting if self.recording is None else self.recording).append(work)

    def carry_out(self) -> None:
        work, self.waiting = self.waiting, []
        for step in work:
            step()


def fake_cuda(gpu: Gpu) -> types.ModuleType:
    """The module, bound to a GPU."""
    module = types.ModuleType("cuda.bindings.runtime")
    functions = [*_memory(gpu), *_host_memory(gpu), *_device(gpu), *_copies(gpu)]
    functions += [*_streams(gpu), *_graphs(gpu)]
    for function in functions:
        setattr(module, function.__name__, _failing(gpu, function))
    for kind in (cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode, cudaDeviceAttr):
        setattr(module, kind.__name__, kind)
    module.cudaStreamNonBlocking = 1  # type: ignore[attr-defined]
    module.cudaHostAllocMapped = 2  # type: ignore[attr-defined]
    return module


def _failing(gpu: Gpu, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        code = gpu.fail.pop(function.__name__, None)
        if gpu.recording is not None and function.__name__ in _NOT_WHILE_RECORDING:
            gpu.broken = True
            code = cudaError_t.cudaErrorStreamCaptureUnsupported
        return (code, None) if code is not None else function(*arguments)

    call.__name__ = function.__name__
    return call


def _memory(gpu: Gpu) -> list[Callable[..., Any]]:
    def cudaMalloc(size: int) -> Any:
        if gpu.used + size > gpu.capacity:
            return cudaError_t.cudaErrorMemoryAllocation, None
        address = gpu.new_address(size)
        gpu.blocks[address] = np.full(size, 0xCD, np.uint8)
        return cudaError_t.cudaSuccess, address

    def cudaFree(address: int) -> Any:
        gpu.carry_out()  # as the real one, which waits for the device
        del gpu.blocks[address]
        return (cudaError_t.cudaSuccess,)

    def cudaMemGetInfo() -> Any:
        return cudaError_t.cudaSuccess, gpu.capacity - gpu.used, gpu.capacity

    return [cudaMalloc, cudaFree, cudaMemGetInfo]


def _host_memory(gpu: Gpu) -> list[Callable[..., Any]]:
    def cudaMallocHost(size: int) -> Any:
        array = np.full(size, 0xCD, np.uint8)
        gpu.pinned[array.ctypes.data] = array
        return cudaError_t.cudaSuccess, array.ctypes.data

    def cudaHostAlloc(size: int, flags: int) -> Any:
        assert flags == 2
        return cudaMallocHost(size)

    def cudaHostGetDevicePointer(address: int, flags: int) -> Any:
        assert flags == 0
        array = gpu.pinned[address]
        on_device = gpu.new_address(array.nbytes)
        gpu.mapped[on_device] = array
        return cudaError_t.cudaSuccess, on_device

    def cudaFreeHost(address: int) -> Any:
        freed = gpu.pinned.pop(address)
        gpu.mapped = {key: array for key, array in gpu.mapped.items() if array is not freed}
        return (cudaError_t.cudaSuccess,)

    return [cudaMallocHost, cudaHostAlloc, cudaHostGetDevicePointer, cudaFreeHost]


def _device(gpu: Gpu) -> list[Callable[..., Any]]:
    def cudaDeviceGetAttribute(attribute: cudaDeviceAttr, device: int) -> Any:
        assert (attribute, device) == (cudaDeviceAttr.cudaDevAttrIntegrated, gpu.current)
        return cudaError_t.cudaSuccess, int(gpu.integrated)

    def cudaGetDevice() -> Any:
        return cudaError_t.cudaSuccess, gpu.current

    def cudaSetDevice(device: int) -> Any:
        gpu.chosen.ordinal = device
        return (cudaError_t.cudaSuccess,)

    def cudaGetErrorString(code: cudaError_t) -> Any:
        return cudaError_t.cudaSuccess, f"text of {int(code)}".encode()

    return [cudaDeviceGetAttribute, cudaGetDevice, cudaSetDevice, cudaGetErrorString]


def _copies(gpu: Gpu) -> list[Callable[..., Any]]:
    def in_pinned(address: int, size: int) -> bool:
        return any(
            start <= address <= address + size <= start + a.nbytes
            for start, a in gpu.pinned.items()
        )

    def carry(target: int, source: int, count: int, kind: cudaMemcpyKind) -> None:
        if kind == cudaMemcpyKind.cudaMemcpyHostToDevice:
            gpu.view(target, count)[:] = np.frombuffer(ctypes.string_at(source, count), np.uint8)
            gpu.crossings.append(("in", count))
        elif kind == cudaMemcpyKind.cudaMemcpyDeviceToHost:
            ctypes.memmove(target, gpu.view(source, count).tobytes(), count)
            gpu.crossings.append(("out", count))
        else:
            gpu.view(target, count)[:] = gpu.view(source, count)
            gpu.crossings.append(("within", count))

    def cudaMemcpyAsync(
        target: int, source: int, count: int, kind: cudaMemcpyKind, stream: int
    ) -> Any:
        assert stream in gpu.streams
        host = {1: source, 2: target}.get(int(kind))
        assert host is None or in_pinned(host, count), "not page-locked"
        gpu.put(lambda: carry(target, source, count, kind))
        return (cudaError_t.cudaSuccess,)

    def cudaMemsetAsync(address: int, value: int, count: int, stream: int) -> Any:
        assert stream in gpu.streams
        gpu.put(lambda: gpu.view(address, count).fill(value))
        return (cudaError_t.cudaSuccess,)

    return [cudaMemcpyAsync, cudaMemsetAsync]


def _streams(gpu: Gpu) -> list[Callable[..., Any]]:
    def cudaStreamCreateWithFlags(flags: int) -> Any:
        assert flags == 1
        gpu.home = gpu.current
        stream = next(gpu.handles)
        gpu.streams.add(stream)
        return cudaError_t.cudaSuccess, stream

    def cudaStreamDestroy(stream: int) -> Any:
        gpu.streams.remove(stream)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(stream: int) -> Any:
        assert stream in gpu.streams
        gpu.carry_out()
        return (cudaError_t.cudaSuccess,)

    def cudaStreamBeginCapture(stream: int, mode: cudaStreamCaptureMode) -> Any:
        assert stream in gpu.streams
        assert mode in cudaStreamCaptureMode
        gpu.recording = []
        return (cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(stream: int) -> Any:
        assert stream in gpu.streams
        assert gpu.recording is not None
        handle, recorded = next(gpu.handles), gpu.recording
        gpu.recording = None
        if gpu.broken:
            gpu.broken = False
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        gpu.graphs[handle] = recorded
        return cudaError_t.cudaSuccess, handle

    return [
        cudaStreamCreateWithFlags,
        cudaStreamDestroy,
        cudaStreamSynchronize,
        cudaStreamBeginCapture,
        cudaStreamEndCapture,
    ]


def _graphs(gpu: Gpu) -> list[Callable[..., Any]]:
    def cudaGraphGetNodes(graph: int, numNodes: int = 0) -> Any:  # noqa: N803
        assert numNodes == 0, "only counts them"
        return cudaError_t.cudaSuccess, [], len(gpu.graphs[graph])

    def cudaGraphInstantiate(graph: int, flags: int) -> Any:
        assert flags == 0
        handle = next(gpu.handles)
        gpu.graphs[handle] = list(gpu.graphs[graph])
        return cudaError_t.cudaSuccess, handle

    def cudaGraphLaunch(executable: int, stream: int) -> Any:
        assert stream in gpu.streams
        gpu.launches += 1
        for work in gpu.graphs[executable]:
            gpu.put(work)
        return (cudaError_t.cudaSuccess,)

    def cudaGraphDestroy(graph: int) -> Any:
        del gpu.graphs[graph]
        return (cudaError_t.cudaSuccess,)

    def cudaGraphExecDestroy(executable: int) -> Any:
        del gpu.graphs[executable]
        return (cudaError_t.cudaSuccess,)

    return [
        cudaGraphGetNodes,
        cudaGraphInstantiate,
        cudaGraphLaunch,
        cudaGraphDestroy,
        cudaGraphExecDestroy,
    ]
