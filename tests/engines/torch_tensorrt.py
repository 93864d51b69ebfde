"""The fakes of TensorRT with torch kernels in place of an engine's: on a real GPU, or on the fake.

On a GPU, everything that a session does with CUDA is real: memory, copies, its stream, recording
and replay. An execution context launches torch kernels on the session's stream, which read and
write the memory that was bound, and keep what is between them in the scratch memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from sacvit_deploy.spec import (
    COARSE_EMBEDDINGS,
    COARSE_FEATURES,
    FINE_INDEX,
    IMAGE,
    LOGITS,
    NON_TARGET_INDEX,
    SCORE,
    TARGET_INDEX,
)
from tests.engines.fake_tensorrt import (
    DataType,
    IExecutionContext,
    ILogger,
    RtxContext,
    fake_tensorrt,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.spec import Role
    from tests.engines.fake_cuda import Gpu


class Place(Protocol):
    """Where the kernels run."""

    def memory(self, address: int, size: int) -> Tensor:
        """The bytes at an address."""

    def enqueue(self, stream: int, kernels: Callable[[], None]) -> None:
        """Put kernels on a stream."""

    def wait(self, stream: int) -> None:
        """Wait for a stream; `RuntimeError` while it is recorded."""

    @property
    def used(self) -> int:
        """Bytes of device memory in use."""


@dataclass(frozen=True)
class OnFakeGpu:
    gpu: Gpu

    def memory(self, address: int, size: int) -> Tensor:
        return torch.from_numpy(self.gpu.view(address, size))

    def enqueue(self, stream: int, kernels: Callable[[], None]) -> None:
        assert stream in self.gpu.streams
        self.gpu.put(kernels)

    def wait(self, stream: int) -> None:
        if self.gpu.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.gpu.carry_out()

    @property
    def used(self) -> int:
        return self.gpu.used


class OnCuda:
    def memory(self, address: int, size: int) -> Tensor:
        return torch.as_tensor(_Span(address, size), device="cuda")

    def enqueue(self, stream: int, kernels: Callable[[], None]) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            kernels()

    def wait(self, stream: int) -> None:
        torch.cuda.ExternalStream(stream).synchronize()

    @property
    def used(self) -> int:
        torch.cuda.empty_cache()  # torch keeps what its kernels needed, for each stream
        free, total = torch.cuda.mem_get_info()
        return total - free


class _Span:
    """Device memory as torch takes it from other libraries."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


class Kernels:
    """What both graphs of a network compute, in torch on any device.

    Pixels are small whole numbers, so that every sum is exact and its order has no effect; the
    logits are sums in float64. No operation waits for the GPU, so that all can be recorded.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def run(self, role: Role, feeds: Mapping[str, Tensor], scratch: Tensor) -> dict[str, Tensor]:
        """Compute a graph.

        Args:
            role: Which one.
            feeds: Its inputs.
            scratch: Memory for what is between its kernels, bytes.
        """
        patches = self._patches(feeds[IMAGE])
        if role == "early_exit":
            return self._early_exit(_through(scratch, patches))
        target, other, fine = self._selection(feeds)
        between = _through(scratch, patches.gather(1, fine))
        reused = feeds[COARSE_EMBEDDINGS][:, :, 1].gather(1, other)
        parts = feeds[COARSE_FEATURES][:, :, 0].gather(1, target), between, reused
        outputs = {LOGITS: self._logits(torch.cat(parts, dim=1), 9.0)}
        return outputs | ({TARGET_INDEX: target} if SCORE in feeds else {})

    def _early_exit(self, patches: Tensor) -> dict[str, Tensor]:
        rows, columns = self.config.coarse_grid
        score = patches.reshape(-1, rows, 2, columns, 2).sum(dim=(2, 4)).flatten(1)
        width = torch.arange(1, self.config.embed_dim + 1, device=score.device)
        return {
            LOGITS: self._logits(score, 1.0),
            SCORE: score,
            COARSE_EMBEDDINGS: score[:, :, None] * width,
            COARSE_FEATURES: score[:, :, None] * -width,
        }

    def _selection(self, feeds: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        if SCORE not in feeds:
            return feeds[TARGET_INDEX], feeds[NON_TARGET_INDEX], feeds[FINE_INDEX]
        score = feeds[SCORE]
        index = torch.arange(score.shape[1], device=score.device)
        mine, others = score[:, :, None], score[:, None, :]
        before = (others > mine) | ((others == mine) & (index[None, :] < index[:, None]))
        places = before.sum(dim=2)
        order = torch.zeros_like(places).scatter_(1, places, index.expand_as(places))
        target = order[:, : self.config.num_targets]
        columns = self.config.coarse_grid[1]
        first = 4 * target - 2 * (target % columns)
        row = 2 * columns
        fine = torch.stack([first, first + 1, first + row, first + row + 1], dim=2).flatten(1)
        return target, order[:, self.config.num_targets :], fine

    def _patches(self, image: Tensor) -> Tensor:
        """Sums of the fine patches, (B, 4N)."""
        rows, columns = self.config.fine_grid
        side = self.config.patch_size
        tiles = image.float().reshape(-1, 3, rows, side, columns, side)
        return tiles.sum(dim=(1, 3, 5)).flatten(1)

    def _logits(self, values: Tensor, phase: float) -> Tensor:
        """Any function of all values and of their order, (B, C)."""
        numbers = torch.arange(values.shape[1], device=values.device, dtype=torch.float64)
        total = (values.double() / 1024 * torch.sin(numbers + phase)).sum(dim=1)
        classes = torch.arange(1, self.config.num_classes + 1, device=values.device)
        return (2 * torch.cos(total[:, None] * classes)).float()


def _through(scratch: Tensor, values: Tensor) -> Tensor:
    """Values that were written to the scratch memory and are read from there."""
    part = scratch[: values.numel() * values.element_size()]
    return part.view(values.dtype).view(values.shape).copy_(values)


class KernelSession:
    """One graph on the CPU, to compare with."""

    provider = "torch"

    def __init__(self, config: ModelConfig, role: Role) -> None:
        self.role: Role = role
        self._kernels = Kernels(config)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.generic]]:
        given = {name: torch.from_numpy(array) for name, array in feeds.items()}
        scratch = torch.zeros(1 << 20, dtype=torch.uint8)
        outputs = self._kernels.run(self.role, given, scratch)
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    def close(self) -> None:
        pass


class TorchContext(IExecutionContext):
    """Launches the kernels of its engine's graph."""

    __slots__ = ("_between", "_bound")

    _library: Any

    def __init__(self, engine: Any, library: Any, logger: Any) -> None:
        super().__init__(engine, library, logger)
        self._bound: dict[str, Tensor] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        super().set_device_memory(memory, size)
        self._between = self._library.gpu.memory(memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        dtype, shape, _ = self._engine._tensors[name]
        largest = self._engine._values["batch"][-1]
        sides = [largest if isinstance(side, str) else side for side in shape]
        size = math.prod(sides) * getattr(torch, dtype).itemsize
        self._bound[name] = self._library.gpu.memory(memory, size)
        return super().set_tensor_address(name, memory)

    def execute_async_v3(self, stream_handle: int) -> bool:
        library, shapes = self._library, dict(self._shapes)
        assert self._bound.keys() == self._engine._tensors.keys()
        if self._refused("execute_async_v3"):
            return False
        library.executions += 1
        try:
            if library.unrecordable:
                library.gpu.wait(stream_handle)
            library.gpu.enqueue(stream_handle, lambda: self._launch(shapes))
        except RuntimeError as error:
            self._logger.log(ILogger.ERROR, str(error))
            return False
        return True

    def _launch(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        kernels, role = Kernels(self._library.config), self._engine._values["role"]
        feeds = {name: self._tensor(name, shape) for name, shape in shapes.items()}
        for name, tensor in kernels.run(role, feeds, self._between).items():
            self._tensor(name, tuple(tensor.shape)).copy_(tensor)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        dtype = getattr(torch, DataType(self._engine._tensors[name][0]).value)
        size = math.prod(shape) * dtype.itemsize
        return self._bound[name][:size].view(dtype).view(shape)


class RtxTorchContext(TorchContext, RtxContext):
    __slots__ = ()


def torch_tensorrt(
    place: Place, config: ModelConfig, *, rtx: bool = False, version: str = "10.3.0"
) -> Any:
    """One of the two modules; its `library.executions` counts what was launched."""
    module = fake_tensorrt(place, config, rtx=rtx, version=version)  # type: ignore[arg-type]
    module.library.context = RtxTorchContext if rtx else TorchContext
    module.library.executions = 0
    return module
