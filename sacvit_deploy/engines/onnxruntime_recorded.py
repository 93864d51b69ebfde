"""Runs of ONNX Runtime on buffers that stay, which a GPU provider records once and replays.

With `enable_cuda_graph`, the CUDA provider and the TensorRT-RTX plug-in record a run as a CUDA
graph. A recording holds addresses and shapes. So each set of shapes has buffers of its own, bound
for good, and a `gpu_graph_id`, by which the library tells recordings apart. It never forgets one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.errors import EngineError
from sacvit_deploy.spec import TensorSpec

# Each keeps buffers for all its tensors; further shapes are computed without recording.
MOST_SETS = 16
_NVIDIA = 0x10DE
_ROUNDING = 1e-2

TURN = threading.Lock()
"""Held while anything computes or copies for a session that records.

While one thread records, CUDA refuses allocations and copies of every other.
"""


@dataclass(frozen=True)
class DeviceName:
    """A device as `OrtValue` names it.

    Attributes:
        kind: `cuda`, `cpu`, or `gpu` for that of a plug-in.
        ordinal: Its number.
    """

    kind: str
    ordinal: int = 0

    def empty(self, ort: ModuleType, shape: Sequence[int], dtype: str) -> Any:
        """A new `OrtValue` on the device, of any content."""
        vendor = (_NVIDIA,) if self.kind == "gpu" else ()  # older releases take no vendor
        return ort.OrtValue.ortvalue_from_shape_and_type(
            list(shape), np.dtype(dtype).type, self.kind, self.ordinal, *vendor
        )


@dataclass(eq=False)
class BufferSet:
    """Bound memory for every input and output of one set of shapes.

    Attributes:
        values: `OrtValue` of each tensor, by name.
        binding: Holds them.
        options: Run options that name the recording.
        is_checked: Whether a replay gave what a run without recording gives.
    """

    values: Mapping[str, Any]
    binding: Any
    options: Any
    is_checked: bool = False


class Lease:
    """Keeps a set from being used again while it lives."""

    def __init__(self, buffers: BufferSet, free: list[BufferSet]) -> None:
        weakref.finalize(self, free.append, buffers).atexit = False


@dataclass
class BufferSets:
    """The sets of one session; every method is called within `TURN`.

    Attributes:
        ort: The library.
        session: Its session.
        specs: The inputs and outputs of the graph.
        device: Where the buffers are.
    """

    ort: ModuleType
    session: Any
    specs: tuple[Sequence[TensorSpec], Sequence[TensorSpec]]
    device: DeviceName
    _free: dict[tuple[int, ...], list[BufferSet]] = field(default_factory=dict)
    _made: int = 0

    def lease(self, sizes: Mapping[str, int]) -> tuple[BufferSet, Lease] | None:
        """A set for these sizes of the dynamic axes, new or free again; None if there are too many.

        It is free again when the lease is gone.
        """
        free = self._free.setdefault(tuple(sizes[axis] for axis in sorted(sizes)), [])
        if not free:
            if self._made == MOST_SETS:
                return None
            free.append(self._new_set(sizes))
        buffers = free.pop()
        return buffers, Lease(buffers, free)

    def run(self, buffers: BufferSet, feeds: Mapping[str, Any]) -> None:
        """Fill the inputs of a set with arrays or `OrtValue`s, and compute its outputs.

        Raises:
            EngineError: The recording gives other values than a run without it.
        """
        for name, feed in feeds.items():
            # Only an `OrtValue` is copied within the device.
            value = np.ascontiguousarray(feed) if isinstance(feed, np.ndarray) else feed
            buffers.values[name].update_inplace(value)
        if not buffers.is_checked:
            self._check(buffers)
            buffers.is_checked = True
        self._compute(buffers, buffers.options)

    def _compute(self, buffers: BufferSet, options: Any) -> None:
        buffers.binding.synchronize_inputs()
        self.session.run_with_iobinding(buffers.binding, options)
        buffers.binding.synchronize_outputs()

    def _check(self, buffers: BufferSet) -> None:
        """Compare the first replay with a run without recording, in the same memory."""
        outputs = {spec.name: buffers.values[spec.name] for spec in self.specs[1]}
        self._compute(buffers, self.unrecorded())
        wanted = {name: value.numpy().copy() for name, value in outputs.items()}
        for name, value in outputs.items():
            value.update_inplace(np.zeros_like(wanted[name]))
        self._compute(buffers, buffers.options)
        for name, value in outputs.items():
            if not _is_close(wanted[name], value.numpy()):
                raise EngineError(
                    f"A recorded run gives another {name!r} than a run without recording.",
                    "Report it with the output of: sacvit-deploy doctor",
                )

    def unrecorded(self) -> Any:
        """Run options for a run that is neither recorded nor replayed."""
        return self._options(-1)

    def _new_set(self, sizes: Mapping[str, int]) -> BufferSet:
        binding, values = self.session.io_binding(), {}
        binders = binding.bind_ortvalue_input, binding.bind_ortvalue_output
        for specs, bind in zip(self.specs, binders, strict=True):
            for spec in specs:
                shape = [sizes[side] if isinstance(side, str) else side for side in spec.shape]
                values[spec.name] = self.device.empty(self.ort, shape, spec.dtype)
                bind(spec.name, values[spec.name])
        self._made += 1
        return BufferSet(values, binding, self._options(self._made))  # 0 is the library's own

    def _options(self, recording: int) -> Any:
        options = self.ort.RunOptions()
        # The second name is that of the plug-in's own sources.
        for key in ("gpu_graph_id", "cuda_graph_annotation_id"):
            options.add_run_config_entry(key, str(recording))
        return options


def _is_close(wanted: NDArray[Any], found: NDArray[Any]) -> bool:
    """Whether two runs are equal but for the order of sums; a ranking may differ then."""
    if wanted.dtype.kind != "f":
        return True
    limit = _ROUNDING * float(np.abs(wanted).max(initial=0.0))
    return bool(np.allclose(wanted, found, rtol=0, atol=limit, equal_nan=True))
