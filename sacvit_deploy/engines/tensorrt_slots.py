"""Sets of memory that an engine's calls use in turn, and what keeps a set from being used again."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.engines.device_memory import CudaGraph, DeviceBuffer


@dataclass
class Shaped:
    """An execution context for one set of shapes, and its recording."""

    context: Any
    recorded: CudaGraph | None = None
    has_run: bool = False


@dataclass(eq=False)
class Slot:
    """Device memory for every input and output, and the contexts bound to it.

    Attributes:
        buffers: Device memory, by name.
        host: Memory of the host that an input can be written to, by name: page-locked, or that of
            the buffer itself.
        mapped: Inputs whose buffer lies in `host`, so that nothing has to be copied.
        contexts: By the sizes of the dynamic axes.
    """

    buffers: dict[str, DeviceBuffer]
    host: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    mapped: set[str] = field(default_factory=set)
    contexts: dict[tuple[int, ...], Shaped] = field(default_factory=dict)


class Lease:
    """Keeps a slot from being used again while it lives.

    Attributes:
        slot: The slot.
    """

    def __init__(self, slot: Slot, free: list[Slot]) -> None:
        self.slot = slot
        self._end = weakref.finalize(self, free.append, slot)
        self._end.atexit = False

    def forget(self) -> None:
        """Never use the slot again: after a call that failed its contexts may be in any state."""
        self._end.detach()


@dataclass(frozen=True)
class CudaTensor:
    """Rows of a buffer, which keep their values while this object lives.

    Attributes:
        buffer: Device memory of the rows.
        dtype: Dtype of the elements.
        shape: Shape without padding.
        lease: Keeps the buffer from being used for another batch.
    """

    buffer: DeviceBuffer
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    lease: Lease


def leased_array(
    memory: NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...], lease: Lease
) -> NDArray[Any]:
    """An array at the start of a slot's memory, which it keeps while it or a view of it lives."""
    part = memory[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
    return np.asarray(_LeasedMemory(part, lease))


class _LeasedMemory:
    """Owner of an array; a view keeps the owner and not the arrays between them."""

    def __init__(self, part: NDArray[Any], lease: Lease) -> None:
        self.__array_interface__ = part.__array_interface__
        self._part, self._lease = part, lease
