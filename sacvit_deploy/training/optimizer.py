"""AdamW in DeiT's setting, its learning rate, and the moving average of the weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sacvit_deploy.training.config import OptimizerConfig, TrainConfig

_REFERENCE_BATCH = 512
_TABLES = ("cls_token", "pos_embed")


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; vectors, position tables and the class token are not decayed."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or name.startswith(_TABLES)
        (kept if plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to the least rate.

    Args:
        step: 0-based, counted over the whole run.
        steps_per_epoch: Optimiser steps of an epoch.
        config: Peak for 512 pictures a step, least rate, and durations.
    """
    schedule, optimizer = config.schedule, config.optimizer
    peak = optimizer.learning_rate * schedule.batch_size / _REFERENCE_BATCH
    warm = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warm:
        return peak * (step + 1) / warm
    total = schedule.epochs * steps_per_epoch
    share = (step - warm) / max(1, total - warm)
    least = min(optimizer.min_learning_rate, peak)
    return least + (peak - least) * (1 + math.cos(math.pi * share)) / 2


class AveragedWeights:
    """Exponential moving average of a model's weights.

    Early steps count more than the decay says, `(1 + step) / (10 + step)`, so that the first
    weights are forgotten in short runs too. With decay 0 it is the weights themselves.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Take in the weights after a step (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.weights.items():
            average.lerp_(weights[name].detach(), 1 - decay)
