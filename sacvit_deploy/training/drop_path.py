"""Stochastic depth (Huang et al. 2016) on a network that does not know about it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sacvit_deploy.model.vit import Backbone


def add_drop_path(model: Backbone, rate: float) -> None:
    """Drop residual branches of whole pictures while the model is in training mode.

    Args:
        model: Its blocks get hooks at the last layer of their two branches.
        rate: Probability in the last block; it grows linearly from 0 in the first.
    """
    blocks = model.encoder()
    for index, block in enumerate(blocks):
        probability = rate * index / max(1, len(blocks) - 1)
        if probability > 0:
            for last_layer in (block.attn.proj, block.mlp.fc2):
                last_layer.register_forward_hook(_dropper(probability))


def _dropper(probability: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def drop(module: nn.Module, inputs: tuple[Tensor, ...], branch: Tensor) -> Tensor:
        if not module.training:
            return branch
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        kept = torch.rand(shape, device=branch.device) >= probability
        return branch * kept.to(branch.dtype) / (1 - probability)

    return drop
