"""The torch network of a configuration, and the network a bundle was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sacvit_deploy.decode import check_field
from sacvit_deploy.families import family_named
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.records import WeightsOrigin

if TYPE_CHECKING:
    from sacvit_deploy.model.vision_model import VisionModel


_VECTOR_STD = 0.05


def build_model(config: ModelConfig) -> VisionModel:
    """Build the network of a configuration, freshly initialised."""
    model: VisionModel = family_named(config.family).load("model")(config)
    return model


def random_model(config: ModelConfig, seed: int) -> VisionModel:
    """Build a network with weights drawn from a seed; the same seed gives the same weights.

    Biases and norms are drawn too. A training starts with all of them at 0 or 1, and a graph that
    mixed them up would go unnoticed.

    `ConfigError` if the seed has more than 64 bits.
    """
    check_field(-(1 << 63) <= seed < 1 << 63, "seed", seed, "a number of at most 64 bits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=_VECTOR_STD)
            stored = model.state_dict()
            for name, buffer in model.named_buffers():
                if name in stored:  # statistics of BatchNorm; others are constants
                    buffer.add_(torch.randn_like(buffer).abs(), alpha=_VECTOR_STD)
        return model.eval()


def model_of_origin(config: ModelConfig, weights: WeightsOrigin) -> VisionModel | None:
    """Build the model of a bundle again; None if its record of the weights is not enough."""
    if weights.seed is None:
        return None
    return as_stored(random_model(config, weights.seed), weights)


def as_stored(model: VisionModel, weights: WeightsOrigin) -> VisionModel:
    """A copy of the model with its weights folded, and rounded as a bundle's record says.

    It computes in float32. Folding comes first: the weights in the graphs are the folded ones.
    """
    stored = model.folded()
    if weights.storage == "fp16":
        with torch.no_grad():
            for parameter in stored.parameters():
                parameter.copy_(parameter.half().float())
    return stored
