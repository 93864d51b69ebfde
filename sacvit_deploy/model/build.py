"""The torch network of a configuration, and the one a bundle was made from."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from sacvit_deploy.families import family_named

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.model.vit import Backbone

_VECTOR_STD = 0.05


def build_model(config: ModelConfig) -> Backbone:
    """The network a configuration describes, freshly initialised."""
    model: Backbone = family_named(config.family).load("model")(config)
    return model


def random_model(config: ModelConfig, seed: int) -> Backbone:
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


def rounded_to_half(
    model: Backbone,
) -> Backbone:
    """A copy whose weights are numbers that float16 holds; it still computes in float32."""
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.half().float())
    return rounded


def random_origin(seed: int) -> dict[str, Any]:
    """The bundle's record of weights drawn from a seed."""
    return {"origin": "random", "seed": seed}


def model_of_origin(config: ModelConfig, weights: Mapping[str, Any]) -> Backbone | None:
    """The model a bundle was made from, where its record is enough to make it again."""
    if weights.get("origin") == "random":
        return as_stored(random_model(config, int(weights["seed"])), weights)
    return None


def as_stored(model: Backbone, weights: Mapping[str, Any]) -> Backbone:
    """The model with its weights rounded as a bundle's record says they were."""
    return rounded_to_half(model) if weights.get("storage") == "fp16" else model
