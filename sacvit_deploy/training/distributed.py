"""One process or several: what torchrun says, and the few collective operations that are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sacvit_deploy.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """How many processes train together, and which one this is.

    Attributes:
        count: At least 1.
        rank: 0 to count - 1; the first one writes files.
        device: Where this one computes.
    """

    count: int
    rank: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Average the gradients over all processes, where there are several."""
        if self.count == 1:
            return module
        return DistributedDataParallel(module)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes of a tensor of any shape."""
        return self.sum(values) / self.count

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor of any shape."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started; alone without it.

    Args:
        device: `auto`, or a torch device such as `cpu` or `cuda:1`.

    Raises:
        ConfigError: The device does not exist.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = _device(device)
    if count == 1:
        yield Processes(1, 0, chosen)
        return
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(count, rank, chosen)
    finally:
        distributed.destroy_process_group()


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            local = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"The device {name!r} cannot be used: {reason}", 'Set device = "auto" or "cpu".'
        ) from error
    return device
