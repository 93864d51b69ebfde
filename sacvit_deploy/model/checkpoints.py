"""Checkpoints: weights on disk, in our layout or a published one, read and written safely."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import save_file

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.model.checkpoint_file import (
    CONFIG_METADATA,
    read_stored_config,
    read_weights_file,
)
from sacvit_deploy.model.checkpoint_fit import check_finite, check_fit
from sacvit_deploy.model.checkpoint_layout import to_own_layout

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from sacvit_deploy.model.two_stage import TwoStageViT
    from sacvit_deploy.model.vit import VisionTransformer
    from sacvit_deploy.spec import ModelConfig


def load_checkpoint(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """Read the weights of a model from a file in any known layout.

    Accepted are `.safetensors` files and files of `torch.save` (read weights-only), with the names
    of this package, of CF-ViT and LF-ViT, or of DeiT and timm. Position tables of another
    resolution are interpolated. A dense DeiT becomes the start of a two-stage network.

    Args:
        path: The file.
        config: The model the weights are for.

    Returns:
        A float32 state dict on the CPU that `build_model(config).load_state_dict` takes strictly.

    Raises:
        CheckpointError: The file cannot be read, or its weights do not fit the model or are not
            finite. Every key that does not fit is named.
    """
    file = read_weights_file(path)
    try:
        state = to_own_layout(file.tensors, config, file.config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.problem}", error.fix) from error
    check_fit(state, config, str(path))
    check_finite(file.tensors, str(path))
    return state


def load_weights(model: TwoStageViT | VisionTransformer, path: Path) -> None:
    """Fill a model with the weights of a file.

    Raises:
        CheckpointError: As `load_checkpoint` does; the model is then unchanged.
    """
    model.load_state_dict(load_checkpoint(path, model.config), strict=True)


def save_checkpoint(path: Path, state_dict: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Write weights and their configuration as one safetensors file, which appears whole or not.

    Args:
        path: The file; one that exists is replaced.
        state_dict: In this package's layout; any device and floating dtype.
        config: Of the model the weights belong to; stored as JSON in the metadata.

    Raises:
        CheckpointError: The file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    metadata = {"format": "pt", CONFIG_METADATA: json.dumps(config.to_dict())}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, unfinished, metadata=metadata)
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be written: {error}.",
            "Check that its folder exists, may be written to, and has space left.",
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def read_config(path: Path) -> ModelConfig | None:
    """The configuration `save_checkpoint` stored with the weights; None where there is none.

    Raises:
        CheckpointError: The file cannot be read.
    """
    return read_stored_config(path)
