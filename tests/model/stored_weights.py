"""Random weights and files of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoints import Checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from sacvit_deploy.families.config import ModelConfig


def weights_of(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random state dict of a configuration's network."""
    torch.manual_seed(seed)
    return {k: torch.randn_like(v) for k, v in build_model(config).state_dict().items()}


def write(folder: Path, content: Any, name: str = "weights.pth") -> Path:
    """Save anything with torch."""
    path = folder / name
    torch.save(content, path)
    return path


def read_weights(path: Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    """The weights of a file in the layout of a configuration's network."""
    return Checkpoint.read(path).weights(config)


def refusal(path: Path, config: ModelConfig) -> CheckpointError:
    """The error that names the file and a fix."""
    with pytest.raises(CheckpointError) as caught:
        read_weights(path, config)
    assert str(path.name) in caught.value.problem
    assert caught.value.fix
    return caught.value


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Equal float32 state dicts."""
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == torch.float32, name
        assert torch.equal(found[name], tensor), name
