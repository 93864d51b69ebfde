"""Deformable attention: each query reads a few places of pictures of features, which it chooses.

Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection" (ICLR 2021),
eq. 2 and 3, on pictures of a fixed size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Grid = tuple[int, int]


@functools.cache
def centres(grids: tuple[Grid, ...]) -> NDArray[np.float64]:
    """Centre of each cell of some grids, row by row, as (x, y) from -1 to 1: (cells, 2).

    -1 and 1 are the outer borders of a picture.
    """
    parts = []
    for rows, columns in grids:
        y, x = np.indices((rows, columns)).reshape(2, -1)
        parts.append(np.stack([(2 * x + 1) / columns - 1, (2 * y + 1) / rows - 1], axis=1))
    return np.concatenate(parts)


class DeformableAttention(nn.Module):
    """Multi-head attention of queries to places in pictures of features.

    Args:
        width: Embedding width D.
        num_heads: Heads; divides D.
        num_points: Places per head and picture.
        queries: (rows, columns) of the grids whose cells are the queries, in order.
        pictures: (rows, columns) of each picture of features.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_points: int,
        *,
        queries: Sequence[Grid],
        pictures: Sequence[Grid],
    ) -> None:
        super().__init__()
        self.num_heads, self.num_points = num_heads, num_points
        self.queries, self.pictures = tuple(queries), tuple(pictures)
        points = num_heads * len(pictures) * num_points
        self.sampling_offsets = nn.Linear(width, 2 * points)
        self.attention_weights = nn.Linear(width, points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.folded = False

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """Attend from (B, Q, D) to the cells of all pictures, (B, L, D): (B, Q, D)."""
        places = torch.split(self._places(queries), self.num_points, dim=2)
        scores = self._of_heads(self.attention_weights(queries))
        weights = torch.split(torch.softmax(scores, dim=-1)[:, None], self.num_points, dim=3)
        cells = [math.prod(grid) for grid in self.pictures]
        values = torch.split(self.value_proj(features), cells, dim=1)
        pictures = zip(values, self.pictures, places, weights, strict=True)
        parts = [
            (self._read(value, grid, where) * weight).sum(dim=3)
            for value, grid, where, weight in pictures
        ]
        attended = functools.reduce(torch.add, parts).reshape(-1, *queries.shape[:0:-1])
        result: Tensor = self.output_proj(attended.transpose(1, 2))
        return result

    def _of_heads(self, x: Tensor) -> Tensor:
        """(B, Q, heads * n) to (B * heads, Q, n)."""
        heads = x.reshape(-1, x.shape[1], self.num_heads, x.shape[2] // self.num_heads)
        return heads.transpose(1, 2).flatten(0, 1)

    def _places(self, queries: Tensor) -> Tensor:
        """Where each head of each query reads: (B * heads, Q, pictures * points, 2), from -1 to 1.

        Offsets are in cells of their picture.
        """
        offsets = self._of_heads(self.sampling_offsets(queries))
        offsets = offsets.reshape(-1, offsets.shape[1], offsets.shape[2] // 2, 2)
        if not self.folded:
            offsets = offsets * self._cells(offsets)
        return offsets + _constant(centres(self.queries)[:, None], offsets)

    def _cells(self, like: Tensor) -> Tensor:
        """Size of a cell as (x, y), by picture and point: (pictures * points, 2)."""
        sizes = [[2 / columns, 2 / rows] for rows, columns in self.pictures]
        return _constant(np.repeat(sizes, self.num_points, axis=0), like)

    def _read(self, value: Tensor, grid: Grid, places: Tensor) -> Tensor:
        """Interpolate a picture (B, cells, D) between its cells, with zeros around it.

        Args:
            value: The picture.
            grid: Its (rows, columns).
            places: (B * heads, Q, points, 2).

        Returns:
            (B * heads, D / heads, Q, points).
        """
        head_width = value.shape[2] // self.num_heads
        picture = value.transpose(1, 2).reshape(-1, head_width, *grid)
        return nn.functional.grid_sample(
            picture, places, mode="bilinear", padding_mode="zeros", align_corners=False
        )

    @torch.no_grad()
    def fold(self) -> None:
        """Move the sizes of cells into the weights of the offsets."""
        for parameter in (self.sampling_offsets.weight, self.sampling_offsets.bias):
            scale = self._cells(parameter).flatten().repeat(self.num_heads)
            parameter.mul_(scale.view(-1, *[1] * (parameter.ndim - 1)))
        self.folded = True

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start as published: each head looks in its own direction, each point one cell farther."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = 2 * math.pi * torch.arange(self.num_heads) / self.num_heads
        direction = torch.stack([angle.cos(), angle.sin()], dim=1)
        direction = direction / direction.abs().amax(dim=1, keepdim=True)
        steps = torch.arange(1.0, 1 + self.num_points).repeat(len(self.pictures))
        first = direction[:, None] * steps[:, None]
        self.sampling_offsets.bias.copy_(first.flatten())
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def _constant(table: NDArray[Any], like: Tensor) -> Tensor:
    return torch.tensor(table, dtype=like.dtype, device=like.device)
