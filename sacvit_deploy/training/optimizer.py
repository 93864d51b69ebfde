"""AdamW with DeiT's settings, its learning rate, and the moving average of the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sacvit_deploy.training.config import OptimizerConfig, TrainConfig


_REFERENCE_BATCH = 512
_TABLES = ("cls_token", "pos_embed")
_EMBEDDING = ("patch_embed", *_TABLES)
_GATES = "gates."
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Make AdamW, without weight decay for vectors, position tables and the class token.

    The `scale` of each group is its share of the learning rate. `layer_decay` lowers it for layers
    near the input, `gate_scale` raises it for gates.
    """
    layers = {name: _layer(name) for name, _ in model.named_parameters()}
    depth = 1 + max(layer for layer in layers.values() if layer is not None)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        kept = parameter.ndim < 2 or name.startswith(_TABLES)
        layer = layers[name]
        scale = 1.0 if layer is None else config.layer_decay ** (depth - layer)
        if name.startswith(_GATES):
            scale = config.gate_scale
        groups.setdefault((0.0 if kept else config.weight_decay, scale), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "scale": scale}
            for (decay, scale), parameters in groups.items()
        ],
        lr=config.learning_rate,
        betas=config.betas,
    )


def _layer(name: str) -> int | None:
    """Number a parameter's layer: 0 for the embedding, then the blocks; None after the blocks."""
    if name.startswith(_EMBEDDING):
        return 0
    block = _BLOCK.match(name)
    return int(block[1]) + 1 if block else None


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Compute the learning rate of a step: linear warm-up, then a cosine to the least rate.

    Steps are 0-based and counted over the whole run. The peak is given for 512 pictures a step.
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


@torch.no_grad()
def update_average(
    average: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float, step: int
) -> None:
    """Add the weights after a step (0-based) to their exponential moving average, in place.

    The decay is at most `(1 + step) / (10 + step)`, so that short runs forget the first weights
    too. With decay 0 the average equals the weights.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    for name, tensor in average.items():
        tensor.lerp_(weights[name].detach(), share)
