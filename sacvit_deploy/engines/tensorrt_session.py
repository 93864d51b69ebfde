"""Sessions of TensorRT and TensorRT-RTX engines, through cuda-bindings."""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.engines.device_memory import CudaDevice, DeviceBuffer
from sacvit_deploy.engines.session import Rows, SessionOptions, Tensor, check_feeds, closed_error
from sacvit_deploy.engines.tensorrt_engine import CudaGraphWarning, TensorRTEngine
from sacvit_deploy.engines.tensorrt_slots import CudaTensor, Lease, Shaped, Slot, leased_array
from sacvit_deploy.errors import EngineError, warn_caller
from sacvit_deploy.spec import IMAGE, Role, TensorSpec

if TYPE_CHECKING:
    from sacvit_deploy.engines.compatibility import CheckedPlan


# Two axes with a dozen sizes each make more pairs than a program meets; the least recently used one
# is dropped.
_MOST_RECORDED = 32


class TensorRTSession:
    """One engine with its memory.

    Buffers are allocated once, for the engine's largest batch. A call uses one set of them, a slot.
    It is not used again while a handle to one of its tensors lives, or an array of `input_array`;
    the next call gets another. So there are at most as many slots as threads between their first
    picture and the end of the second stage.
    """

    def __init__(
        self,
        engine: TensorRTEngine,
        device: CudaDevice,
        scratch: DeviceBuffer,
        *,
        record: bool = True,
        from_host: Collection[str] = (),
    ) -> None:
        """Prepare an engine for calls.

        Args:
            engine: The engine.
            device: Shared by the engines of one bundle; calls take turns.
            scratch: Memory for the context that runs, shared too, as the largest engine needs.
            record: Keep one context for each batch size, and a CUDA graph of it.
            from_host: Inputs that the host writes. Where both share one memory, the engine reads
                them from there.

        Raises:
            EngineError: The device has too little memory.
        """
        self._engine, self._device, self._scratch = engine, device, scratch
        self._recording = record
        self._inputs, self._outputs = engine.graph.inputs, engine.graph.outputs
        self._specs = {spec.name: spec for spec in (*self._inputs, *self._outputs)}
        largest = {axis: buckets.largest for axis, buckets in engine.buckets.items()}
        self._bytes = {
            name: math.prod(_shape(spec, largest)) * np.dtype(spec.dtype).itemsize
            for name, spec in self._specs.items()
        }
        self._from_host = from_host if device.is_integrated else ()
        # Those of arrays that were handed out and have not been run, by their address.
        self._handed_out: weakref.WeakValueDictionary[int, Lease] = weakref.WeakValueDictionary()
        self._staging: dict[str, NDArray[np.uint8]] = {}
        self._slots: weakref.WeakSet[Slot] = weakref.WeakSet()
        self._free = [self._new_slot()]
        self._is_open = True
        device.users.add(self)

    @property
    def provider(self) -> str:
        """The library and its version."""
        return str(self._engine.library)

    @property
    def memory(self) -> str | None:
        """Library and device; see `DeviceSession.memory`."""
        return f"{self._engine.library.backend} cuda:{self._device.ordinal}"

    def prepared_sizes(self, largest: int) -> list[int]:
        """Those that are recorded; see `PreparingSession.prepared_sizes`."""
        recorded = {size for each in self._engine.buckets.values() for size in each.recorded}
        return sorted({size for size in recorded if size < largest} | {largest})

    def input_array(self, name: str, rows: int) -> NDArray[Any]:
        """Page-locked memory, or the engine's own; see `HostMemorySession.input_array`."""
        spec = self._specs[name]
        for buckets in self._engine.buckets.values():
            buckets.padded(rows)
        with self._device.turn():
            self._check_open()
            lease = self._take()
            host = lease.slot.host
            if name not in host:
                host[name] = self._device.pinned(self._bytes[name])
            self._handed_out[host[name].ctypes.data] = lease
        shape = _shape(spec, dict.fromkeys(self._engine.buckets, rows))
        return leased_array(host[name], np.dtype(spec.dtype), shape, lease)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute every output; see `Session.run`."""
        return self.run_on_device(feeds, ())[0]

    def run_on_device(
        self, feeds: Mapping[str, Tensor], keep: Collection[str]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Tensor]]:
        """Compute every output; see `DeviceSession.run_on_device`."""
        sizes = check_feeds(feeds, self._inputs)
        padded = {axis: self._engine.buckets[axis].padded(size) for axis, size in sizes.items()}
        fetched = [spec for spec in self._outputs if spec.name not in keep]
        with self._device.turn():
            self._check_open()
            lease = self._lease_of(feeds) or self._take()
            slot = lease.slot
            try:
                self._fill(slot, feeds)
                self._launch(slot, padded)
                arrays = self._fetch(slot, fetched, sizes)
            except BaseException:
                lease.forget()
                raise
            if not keep:
                del lease  # the slot is free before another thread has its turn
                return arrays, {}
        kept: dict[str, Tensor] = {
            name: CudaTensor(
                buffer=slot.buffers[name],
                dtype=np.dtype(self._specs[name].dtype),
                shape=_shape(self._specs[name], sizes),
                lease=lease,
            )
            for name in keep
        }
        return arrays, kept

    def close(self) -> None:
        """Release engine, contexts, recorded graphs and memory; see `Session.close`.

        The last session of a bundle releases what they share.
        """
        with self._device.last_turn():
            if not self._is_open:
                return
            self._is_open = False
            for slot in self._slots:
                slot.contexts.clear()
                slot.host.clear()
                for buffer in slot.buffers.values():
                    buffer.free()
            self._free.clear()
            self._staging.clear()
            self._engine.close()
            self._device.users.discard(self)
            if not self._device.users:
                self._scratch.free()
                self._device.close()

    def _check_open(self) -> None:
        if not self._is_open:
            raise closed_error(f"The session of {self._engine.entry.file}")

    def _take(self) -> Lease:
        """Lease a slot that is not in use."""
        return Lease(self._free.pop() if self._free else self._new_slot(), self._free)

    def _lease_of(self, feeds: Mapping[str, Tensor]) -> Lease | None:
        """The lease of an array that was handed out and is run for the first time."""
        for feed in feeds.values():
            if isinstance(feed, np.ndarray):
                lease = self._handed_out.pop(feed.ctypes.data, None)
                if lease is not None:
                    return lease
        return None

    def _new_slot(self) -> Slot:
        slot = Slot({})
        for name, size in self._bytes.items():
            if name in self._from_host:
                slot.buffers[name], slot.host[name] = self._device.mapped(size)
                slot.mapped.add(name)
            else:
                slot.buffers[name] = self._device.allocate(size)
        self._slots.add(slot)
        return slot

    def _fill(self, slot: Slot, feeds: Mapping[str, Tensor]) -> None:
        """Copy the inputs to the slot.

        Rows that pad keep what was there before: zeros, or rows of an earlier batch. Both are valid
        inputs, and no row has an effect on another.
        """
        for spec in self._inputs:
            feed, address = feeds[spec.name], slot.buffers[spec.name].address
            if isinstance(feed, Rows):
                self._copy_rows(feed.tensor, feed.numbers.tolist(), address)
            elif isinstance(feed, CudaTensor):
                self._copy_rows(feed, range(feed.shape[0]), address)
            else:
                self._copy_array(slot, spec, np.asarray(feed))

    def _copy_array(self, slot: Slot, spec: TensorSpec, array: NDArray[Any]) -> None:
        """Copy an array as far as it is not where the engine reads it."""
        host, mapped = slot.host.get(spec.name), spec.name in slot.mapped
        is_there = host is not None and array.ctypes.data == host.ctypes.data
        if not (is_there and array.flags.c_contiguous):
            memory = host if mapped and host is not None else self._staging_of(spec)
            rows = _as_array(memory, spec, array.shape)
            rows[...] = array
            array = rows
        if not mapped:
            self._device.copy_in(slot.buffers[spec.name].address, array)

    def _copy_rows(self, handle: Any, rows: Sequence[int], address: int) -> None:
        """Copy rows of another session's tensor, those that lie side by side at once."""
        row_bytes = math.prod(handle.shape[1:]) * handle.dtype.itemsize
        for first, count in _runs(rows):
            self._device.copy_within(
                address, handle.buffer.address + first * row_bytes, count * row_bytes
            )
            address += count * row_bytes

    def _launch(self, slot: Slot, padded: Mapping[str, int]) -> None:
        shaped = self._shaped(slot, padded)
        if shaped.recorded is not None:
            self._device.launch(shaped.recorded)
            return
        if self._recording and not shaped.has_run:
            self._engine.check_recordable(shaped.context, self._device.stream)
        self._enqueue(shaped.context)
        if shaped.has_run:
            self._engine.keep_compiled(new_shapes=False)
            return
        shaped.has_run = True
        # The first run after a change of shape does work on the host that cannot be recorded.
        self._device.synchronize()
        if self._recording and not self._engine.library.is_rtx:  # that one records by itself
            try:
                shaped.recorded = self._device.record(lambda: self._enqueue(shaped.context))
            except EngineError as error:
                name = self._engine.entry.file
                warn_caller(f"{name} runs without CUDA graphs: {error.problem}", CudaGraphWarning)
        self._engine.keep_compiled(new_shapes=True)

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._device.stream):
            raise self._engine.failure("failed to run", "See: sacvit-deploy doctor")

    def _shaped(self, slot: Slot, padded: Mapping[str, int]) -> Shaped:
        """The context for these sizes: one for each where they are recorded, else one for all."""
        key = tuple(padded.values()) if self._recording else ()
        shaped = slot.contexts.pop(key, None)
        if shaped is None:
            while len(slot.contexts) >= _MOST_RECORDED:
                del slot.contexts[next(iter(slot.contexts))]
            shaped = Shaped(self._bound_context(slot))
        if not (self._recording and shaped.has_run):
            for spec in self._inputs:
                shape = _shape(spec, padded)
                if not shaped.context.set_input_shape(spec.name, shape):
                    raise self._engine.failure(
                        f"refuses {spec.name!r} of shape {shape} for", self._engine.rebuild
                    )
        slot.contexts[key] = shaped  # the most recently used one is the last
        return shaped

    def _bound_context(self, slot: Slot) -> Any:
        context = self._engine.create_context()
        context.set_device_memory(self._scratch.address, self._scratch.size)
        for name, buffer in slot.buffers.items():
            if not context.set_tensor_address(name, buffer.address):
                raise self._engine.failure(
                    f"refuses the memory of {name!r} for", self._engine.rebuild
                )
        return context

    def _fetch(
        self, slot: Slot, specs: list[TensorSpec], sizes: Mapping[str, int]
    ) -> dict[str, NDArray[Any]]:
        """Wait for the work, and copy the outputs without padding."""
        staged = {
            spec.name: _as_array(self._staging_of(spec), spec, _shape(spec, sizes))
            for spec in specs
        }
        for name, rows in staged.items():
            self._device.copy_out(rows, slot.buffers[name].address)
        self._device.synchronize()
        return {name: rows.copy() for name, rows in staged.items()}

    def _staging_of(self, spec: TensorSpec) -> NDArray[np.uint8]:
        """Page-locked host memory of all slots; a tensor that stays on the device needs none."""
        if spec.name not in self._staging:
            self._staging[spec.name] = self._device.pinned(self._bytes[spec.name])
        return self._staging[spec.name]


def open_engines(
    bundle: Bundle, plans: Sequence[CheckedPlan], options: SessionOptions
) -> dict[Role, TensorRTSession]:
    """Open engines of a bundle, one for each role, which share a stream and scratch memory.

    Raises:
        EngineError: There is no usable GPU, too little memory, or a plan that does not load.
        MissingDependencyError: cuda-bindings is not installed.
    """
    device = CudaDevice()
    engines = [TensorRTEngine(bundle, plan, options) for plan in plans]
    scratch = device.allocate(max(engine.scratch_bytes for engine in engines))
    return {
        engine.entry.role: TensorRTSession(
            engine,
            device,
            scratch,
            record=options.cuda_graphs,
            from_host=() if engine.entry.role == "refine" else (IMAGE,),
        )
        for engine in engines
    }


def _as_array(memory: NDArray[np.uint8], spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[Any]:
    """A tensor at the start of some memory."""
    size = math.prod(shape) * np.dtype(spec.dtype).itemsize
    return memory[:size].view(spec.dtype).reshape(shape)


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First row and length of each run of rows that lie side by side."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end] != rows[end - 1] + 1:
            yield rows[start], end - start
            start = end


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[side] if isinstance(side, str) else side for side in spec.shape)
