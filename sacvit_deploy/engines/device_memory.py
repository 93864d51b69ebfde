"""One CUDA device as the engine sessions use it: memory, a stream, copies and recorded graphs.

It needs only `cuda.bindings.runtime` of cuda-bindings, which speaks to the driver alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.engines.machine import this_machine
from sacvit_deploy.engines.session import closed_error
from sacvit_deploy.errors import EngineError, MissingDependencyError

_MIB = 1 << 20
_DOCTOR = "See what this machine has with: sacvit-deploy doctor"


class DeviceBuffer:
    """Device memory, all zero at first; freed by `free`, or else with the object.

    Attributes:
        size: In bytes.
        free: Frees the memory; a second call does nothing.
    """

    def __init__(self, address: int, size: int, free: Callable[[int], object]) -> None:
        self._address = address
        self.size = size
        self.free = _released_with(self, free, address)

    @property
    def address(self) -> int:
        """Aligned to 256 bytes or more; `EngineError` if the memory was freed."""
        if not self.free.alive:
            raise closed_error("Device memory of a session")
        return self._address


class CudaGraph:
    """Recorded work, to be launched again."""

    def __init__(self, executable: Any, destroy: Callable[[Any], object]) -> None:
        self.executable = executable
        _released_with(self, destroy, executable)


class CudaDevice:
    """The CUDA device that is current where this is made, with one stream of its own.

    Work goes on the stream within `turn`, from the first copy in to the last copy out, so that
    sessions in several threads can share buffers and scratch memory.

    Attributes:
        ordinal: Its number.
        users: The open sessions on it.
        close: Destroys the stream; a second call does nothing.
    """

    def __init__(self) -> None:
        """Make the stream.

        Raises:
            MissingDependencyError: cuda-bindings is not installed.
            EngineError: There is no usable GPU.
        """
        self._rt = _cuda_runtime()
        self._lock = threading.Lock()
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        self.ordinal = int(self._call(self._rt.cudaGetDevice))
        self._stream = self._call(
            self._rt.cudaStreamCreateWithFlags, self._rt.cudaStreamNonBlocking
        )
        self.close = _released_with(self, self._rt.cudaStreamDestroy, self._stream)

    @property
    def stream(self) -> int:
        """Its handle, for other libraries."""
        return int(self._stream)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other thread is at work, and make this the thread's current device.

        CUDA keeps a current device for each thread, and a new thread begins with device 0.
        """
        with self._lock:
            self._call(self._rt.cudaSetDevice, self.ordinal)
            yield

    @contextlib.contextmanager
    def last_turn(self) -> Iterator[None]:
        """Like `turn`, once the stream is idle or closed; a device that failed is no error here."""
        with self._lock:
            with contextlib.suppress(EngineError):
                self._call(self._rt.cudaSetDevice, self.ordinal)
                if self.close.alive:
                    self.synchronize()
            yield

    def allocate(self, size: int) -> DeviceBuffer:
        """Memory of `size` bytes, all zero; `EngineError` if there is not enough."""
        address = int(self._call(self._rt.cudaMalloc, max(size, 1), wanted=size))
        buffer = DeviceBuffer(address, size, self._rt.cudaFree)
        self._call(self._rt.cudaMemsetAsync, address, 0, size, self._stream)
        return buffer

    @property
    def is_integrated(self) -> bool:
        """Whether it computes in the memory of the host, as a Jetson does."""
        integrated = self._rt.cudaDeviceAttr.cudaDevAttrIntegrated
        return bool(self._call(self._rt.cudaDeviceGetAttribute, integrated, self.ordinal))

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host memory of `size` bytes, which the device copies without a detour."""
        address = int(self._call(self._rt.cudaMallocHost, max(size, 1), wanted=size))
        return self._host_array(address, size)

    def mapped(self, size: int) -> tuple[DeviceBuffer, NDArray[np.uint8]]:
        """Page-locked host memory, all zero, that the device reads in place.

        Returns:
            It as the device sees it, and as the host does.
        """
        flags = self._rt.cudaHostAllocMapped
        address = int(self._call(self._rt.cudaHostAlloc, max(size, 1), flags, wanted=size))
        array = self._host_array(address, size)
        array[:] = 0
        on_device = int(self._call(self._rt.cudaHostGetDevicePointer, address, 0))
        held = [array]
        return DeviceBuffer(on_device, size, lambda _: held.clear()), array

    def _host_array(self, address: int, size: int) -> NDArray[np.uint8]:
        """Page-locked memory, freed with the last view of the array."""
        block = (ctypes.c_uint8 * size).from_address(address)
        _released_with(block, self._rt.cudaFreeHost, address)
        return np.ctypeslib.as_array(block)

    def copy_in(self, address: int, source: NDArray[Any]) -> None:
        """Copy from pinned host memory, which must not change until `synchronize`."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, source.ctypes.data, source.nbytes, kind)

    def copy_out(self, target: NDArray[Any], address: int) -> None:
        """Copy to pinned host memory, valid after `synchronize`."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(target.ctypes.data, address, target.nbytes, kind)

    def copy_within(self, target: int, source: int, size: int) -> None:
        """Copy from memory of the device, its own or mapped, to such memory."""
        self._copy(target, source, size, self._rt.cudaMemcpyKind.cudaMemcpyDefault)

    def synchronize(self) -> None:
        """Wait for all work on the stream; `EngineError` if some of it failed."""
        self._call(self._rt.cudaStreamSynchronize, self._stream)

    def record(self, enqueue: Callable[[], None]) -> CudaGraph:
        """Record the work that `enqueue` puts on the stream, without running it.

        Raises:
            EngineError: It cannot be recorded, or there is none; the stream is usable again.
        """
        rt = self._rt
        with _no_garbage_collection():
            graph = self._captured(enqueue)
        try:
            if not self._call(rt.cudaGraphGetNodes, graph):
                raise EngineError("Nothing was put on the stream while it was recorded.", _DOCTOR)
            executable = self._call(rt.cudaGraphInstantiate, graph, 0)
        finally:
            rt.cudaGraphDestroy(graph)
        return CudaGraph(executable, rt.cudaGraphExecDestroy)

    def _captured(self, enqueue: Callable[[], None]) -> Any:
        rt = self._rt
        mode = rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(rt.cudaStreamBeginCapture, self._stream, mode)
        try:
            enqueue()
        except BaseException:
            with contextlib.suppress(EngineError):  # says no more than the error on its way
                rt.cudaGraphDestroy(self._call(rt.cudaStreamEndCapture, self._stream))
            raise
        return self._call(rt.cudaStreamEndCapture, self._stream)

    def launch(self, graph: CudaGraph) -> None:
        """Put recorded work on the stream."""
        self._call(self._rt.cudaGraphLaunch, graph.executable, self._stream)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self._call(self._rt.cudaMemcpyAsync, target, source, size, kind, self._stream)

    def _call(self, function: Callable[..., Any], *arguments: Any, wanted: int = 0) -> Any:
        """The last result of a CUDA call, most often the only one; None if it has none."""
        code, *results = function(*arguments)
        if code == self._rt.cudaError_t.cudaSuccess:
            return results[-1] if results else None
        if code == self._rt.cudaError_t.cudaErrorMemoryAllocation:
            raise EngineError(
                f"The GPU has no {wanted / _MIB:.1f} MiB left{self._memory_left()}.",
                "Close other programs that use it, or build for a smaller largest batch: "
                "sacvit-deploy build-engine BUNDLE --batch MIN:OPT:MAX.",
            )
        _, text = self._rt.cudaGetErrorString(code)
        said = text.decode() if isinstance(text, bytes) else str(text)
        raise EngineError(f"CUDA failed in {function.__name__}: {said} ({code.name}).", _DOCTOR)

    def _memory_left(self) -> str:
        code, *sizes = self._rt.cudaMemGetInfo()
        if code != self._rt.cudaError_t.cudaSuccess:
            return ""
        return f" ({sizes[0] / _MIB:.0f} of {sizes[1] / _MIB:.0f} MiB free)"


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep memory of dead objects from being freed here: no recording survives a `cudaFree`."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _released_with(
    owner: object, release: Callable[[Any], object], handle: Any
) -> weakref.finalize[[Any], object]:
    """Release a handle of CUDA with its owner, or earlier when the result is called."""
    finalizer = weakref.finalize(owner, release, handle)
    # Not at exit: the driver may be gone by then, and has released all of it.
    finalizer.atexit = False
    return finalizer


def _cuda_runtime() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        major = (this_machine().driver_cuda or "12").partition(".")[0]
        raise MissingDependencyError(
            f"Running an engine needs cuda-bindings, which cannot be imported: {error}.",
            f"Install the one for this driver: pip install 'cuda-bindings=={major}.*'",
        ) from error
