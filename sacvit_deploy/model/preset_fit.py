"""Finds the presets whose shapes are those of some weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import PRESETS, ModelConfig
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoint_fit import check_stored
from sacvit_deploy.model.layouts import own_name

_HEAD = "head.weight"


def presets_that_fit(tensors: Mapping[str, Tensor]) -> dict[str, ModelConfig]:
    """Presets with just these tensors, by name, with the number of classes of the weights.

    Shapes do not tell everything: the two-stage families share theirs. Published layouts that have
    to be converted fit none.
    """
    fits = {}
    for name, config in PRESETS.items():
        own = {own_name(each, config): tensor for each, tensor in tensors.items()}
        if _HEAD in own and own[_HEAD].ndim == 2:
            config = config.replace(num_classes=len(own[_HEAD]))
        if _fits(own, config):
            fits[name] = config
    return fits


def _fits(own: Mapping[str, Tensor], config: ModelConfig) -> bool:
    try:
        check_stored(own, config)  # before a network is built
    except ConfigError:
        return False
    with torch.device("meta"):
        wanted = build_model(config).state_dict()
    return _shapes(own) == _shapes(wanted)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
