"""Where the model to export comes from: a checkpoint, or a seed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.manifest import FileRecord
from sacvit_deploy.model.checkpoints import load_weights, read_config
from sacvit_deploy.model.two_stage import build_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sacvit_deploy.model.two_stage import TwoStageViT
    from sacvit_deploy.model.vit import VisionTransformer
    from sacvit_deploy.spec import ModelConfig


_VECTOR_STD = 0.05


def random_model(config: ModelConfig, seed: int) -> TwoStageViT | VisionTransformer:
    """The network with weights drawn from a seed; the same seed gives the same weights.

    Biases and norms are drawn too. As a training starts, they are all 0 and 1, and a graph that
    mixed them up would go unnoticed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=_VECTOR_STD)
        return model.eval()


def checkpoint_model(path: Path, config: ModelConfig) -> TwoStageViT | VisionTransformer:
    """The network with the weights of a checkpoint.

    Raises:
        CheckpointError: The file cannot be read or does not belong to this network.
    """
    model = build_model(config)
    load_weights(model, path)
    return model.eval()


def checkpoint_config(path: Path, base: ModelConfig | None) -> ModelConfig:
    """The configuration to read a checkpoint with: the one asked for, or its own.

    Raises:
        ConfigError: None was asked for and the checkpoint records none.
    """
    config = base or read_config(path)
    if config is None:
        raise ConfigError(
            f"{path} does not say which network it holds, and no preset was given.",
            "Name it with --preset, for example --preset sac_deit_small_patch16_224.",
        )
    return config


def rounded_to_half(
    model: TwoStageViT | VisionTransformer,
) -> TwoStageViT | VisionTransformer:
    """A copy whose weights are numbers that float16 holds; it still computes in float32."""
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.half().float())
    return rounded


def random_origin(seed: int) -> dict[str, Any]:
    """The bundle's record of weights drawn from a seed."""
    return {"origin": "random", "seed": seed}


def checkpoint_origin(path: Path) -> dict[str, Any]:
    """The bundle's record of the checkpoint its weights came from."""
    return {"origin": "checkpoint", "file": path.name, "sha256": FileRecord.of(path).sha256}


def model_of_origin(
    config: ModelConfig, weights: Mapping[str, Any]
) -> TwoStageViT | VisionTransformer | None:
    """The model a bundle was made from, where its record is enough to make it again."""
    if weights.get("origin") == "random":
        return as_stored(random_model(config, int(weights["seed"])), weights)
    return None


def as_stored(
    model: TwoStageViT | VisionTransformer, weights: Mapping[str, Any]
) -> TwoStageViT | VisionTransformer:
    """The model with its weights rounded as a bundle's record says they were."""
    return rounded_to_half(model) if weights.get("storage") == "fp16" else model
