"""Attention inside windows, on tokens that constant tables gather.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (ICCV 2021).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sacvit_deploy.families.swin import Stage
from sacvit_deploy.model.windows import (
    Grid,
    Index,
    Mask,
    places,
    relative_positions,
    shift_mask,
    window_index,
)


class StageAttention(nn.Module):
    """What the attentions of a stage share: heads, the scale of the query and the projection."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.num_heads = stage.num_heads
        self.scale = (stage.width // stage.num_heads) ** -0.5
        self.proj = nn.Linear(stage.width, stage.width)

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Scaled products of queries and keys, each (B * windows, heads, tokens, head_dim)."""
        return (query if self.scale == 1 else query * self.scale) @ key.transpose(-2, -1)


class WindowAttention(StageAttention):
    """Multi-head attention inside windows, with a learned bias for each offset of two tokens."""

    def __init__(self, stage: Stage, window: int, *, qkv_bias: bool) -> None:
        super().__init__(stage)
        self.window = window
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, stage.num_heads)
        )
        self.qkv = nn.Linear(stage.width, 3 * stage.width, bias=qkv_bias)

    def forward(self, x: Tensor, grid: Grid, shift: int) -> Tensor:
        """Attend inside each window.

        Args:
            x: Tokens of the grid row by row, (B, L, D). What pads the windows is zero.
            grid: (rows, columns).
            shift: By how many tokens the windows are shifted.
        """
        layout = grid, self.window, shift
        x = gather(x, window_index(*layout))
        query, key, value = heads_of(self.qkv(x), 3, self.num_heads, self.window**2)
        scores = self.scores(query, key) + self.position_bias()
        if shift:
            scores = without_hidden(scores, shift_mask(*layout))
        merged = joined(torch.softmax(scores, dim=-1) @ value, x.shape[1])
        result: Tensor = self.proj(gather(merged, places(*layout)))
        return result

    def position_bias(self) -> Tensor:
        """Bias of each pair of tokens, (heads, window^2, window^2)."""
        table = self.relative_position_bias_table
        if table.ndim == 3:
            return table
        pairs = self.window**2
        index = constant(relative_positions(self.window), table)
        return table[index.flatten()].reshape(pairs, pairs, -1).permute(2, 0, 1)

    @torch.no_grad()
    def fold(self) -> None:
        """Move the scale of the query into its weights, and spread the bias over all pairs."""
        fold_scale(self.qkv, self.scale)
        self.scale = 1.0
        self.relative_position_bias_table = nn.Parameter(self.position_bias().contiguous())


def gather(x: Tensor, index: Index) -> Tensor:
    """Take tokens of x (B, L, D) by a constant table, (B, index.size, D); number L is zeros."""
    if np.array_equal(index.ravel(), np.arange(x.shape[1])):
        return x
    if index.max() == x.shape[1]:
        x = with_padding(x)
    return x.index_select(1, constant(index.ravel(), x))


def with_padding(x: Tensor) -> Tensor:
    """Add a token of zeros to x (B, L, D)."""
    return nn.functional.pad(x, (0, 0, 0, 1))


def constant(table: NDArray[Any], like: Tensor) -> Tensor:
    """A table as a tensor on the device of another."""
    return torch.tensor(table, device=like.device)


def heads_of(x: Tensor, count: int, num_heads: int, tokens: int) -> tuple[Tensor, ...]:
    """Split projections (B, windows * tokens, count * D) by window and head.

    Returns:
        `count` tensors (B * windows, heads, tokens, head_dim).
    """
    heads = x.reshape(-1, tokens, count * num_heads, x.shape[2] // (count * num_heads))
    return heads.transpose(1, 2).chunk(count, dim=1)


def joined(heads: Tensor, length: int) -> Tensor:
    """Join windows and heads, (B * windows, heads, tokens, head_dim) to (B, length, D)."""
    return heads.transpose(1, 2).reshape(-1, length, heads.shape[1] * heads.shape[3])


def without_hidden(scores: Tensor, mask: Mask) -> Tensor:
    """Set the scores of hidden pairs to minus infinity.

    Args:
        scores: (B * windows, heads, queries, keys).
        mask: True where a pair is hidden, (windows, 1 or queries, keys).
    """
    bias = np.where(mask, -np.inf, 0.0)[:, None].astype(np.float32)
    windows = scores.reshape(-1, len(mask), *scores.shape[1:])
    return (windows + constant(bias, scores)).flatten(0, 1)


def fold_scale(linear: nn.Linear, scale: float) -> None:
    """Multiply the first `in_features` outputs of a linear layer, those of the query."""
    for parameter in (linear.weight, linear.bias):
        if parameter is not None:
            parameter[: linear.in_features].mul_(scale)
