"""ViT-Adapter: convolutions on the picture, and their exchange with the tokens of a ViT.

Names of modules and parameters are those of the authors' code. Chen et al., "Vision Transformer
Adapter for Dense Predictions" (ICLR 2023), section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.svit_adapter import (
    LAST_EXTRACTORS,
    adapter_section,
    feature_grids,
    ffn_width,
)
from sacvit_deploy.model.deformable import DeformableAttention, Grid
from sacvit_deploy.model.stems import BatchNorm, fold_batch_norm

_EPS = 1e-6  # of the adapter's norms; blocks and gates have that of the configuration


class SpatialPrior(nn.Module):
    """Convolutions that make four pictures of features, a fourth to a 32nd of the picture."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, width = adapter_section(config).prior_width, config.embed_dim
        self.stem = nn.Sequential(
            *_convolution(3, channels, stride=2),
            *_convolution(channels, channels),
            *_convolution(channels, channels),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_convolution(channels, 2 * channels, stride=2))
        self.conv3 = nn.Sequential(*_convolution(2 * channels, 4 * channels, stride=2))
        self.conv4 = nn.Sequential(*_convolution(4 * channels, 4 * channels, stride=2))
        self.fc1 = nn.Conv2d(channels, width, kernel_size=1)
        self.fc2 = nn.Conv2d(2 * channels, width, kernel_size=1)
        self.fc3 = nn.Conv2d(4 * channels, width, kernel_size=1)
        self.fc4 = nn.Conv2d(4 * channels, width, kernel_size=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four pictures of features of an image (B, 3, H, W), each (B, D, rows, columns)."""
        c1 = self.stem(image)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(c4)

    @torch.no_grad()
    def fold(self, level_embed: Tensor) -> None:
        """Move each BatchNorm and the embeddings (3, D) of the last three into the weights."""
        for part in (self.stem, self.conv2, self.conv3, self.conv4):
            for number, module in enumerate(list(part)):
                if isinstance(module, BatchNorm):
                    fold_batch_norm(part, str(number - 1), str(number))
        for layer, embedding in zip((self.fc2, self.fc3, self.fc4), level_embed, strict=True):
            if layer.bias is not None:
                layer.bias.add_(embedding)


class ConvMlp(nn.Module):
    """An MLP with a depthwise convolution on each picture of features in its middle."""

    def __init__(self, width: int, hidden: int, grids: tuple[Grid, ...]) -> None:
        super().__init__()
        self.grids = grids
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D), the cells of all pictures one after the other."""
        parts = torch.split(self.fc1(x), [math.prod(grid) for grid in self.grids], dim=1)
        convolved = [
            self.dwconv(as_picture(part, grid)).flatten(2)
            for part, grid in zip(parts, self.grids, strict=True)
        ]
        mixed = nn.functional.gelu(torch.cat(convolved, dim=2).transpose(1, 2))
        result: Tensor = self.fc2(mixed)
        return result


class Injector(nn.Module):
    """Tokens read the features: what a deformable attention finds is added to them, scaled."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _, *pictures = feature_grids(config)
        self.query_norm = nn.LayerNorm(config.embed_dim, eps=_EPS)
        self.feat_norm = nn.LayerNorm(config.embed_dim, eps=_EPS)
        self.attn = _attention(config, (config.fine_grid,), tuple(pictures))
        self.gamma = nn.Parameter(torch.zeros(config.embed_dim))
        self.folded = False

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Update tokens (B, N, D) by the cells of all pictures, (B, L, D)."""
        attended = self.attn(self.query_norm(tokens), self.feat_norm(features))
        result: Tensor = tokens + (attended if self.folded else attended * self.gamma)
        return result

    @torch.no_grad()
    def fold(self) -> None:
        """Move the scales into the weights of the attention."""
        self.attn.fold()
        projection = self.attn.output_proj
        projection.weight.mul_(self.gamma[:, None])
        projection.bias.mul_(self.gamma)
        self.folded = True


class Extractor(nn.Module):
    """Features read the tokens: a deformable attention and an MLP, each added to them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _, *pictures = feature_grids(config)
        width, grids = config.embed_dim, tuple(pictures)
        self.query_norm = nn.LayerNorm(width, eps=_EPS)
        self.feat_norm = nn.LayerNorm(width, eps=_EPS)
        self.attn = _attention(config, grids, (config.fine_grid,))
        self.ffn = ConvMlp(width, ffn_width(config), grids)
        self.ffn_norm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Update the cells of all pictures, (B, L, D), by tokens (B, N, D)."""
        features = features + self.attn(self.query_norm(features), self.feat_norm(tokens))
        result: Tensor = features + self.ffn(self.ffn_norm(features))
        return result


class Interaction(nn.Module):
    """What happens before and after one group of blocks."""

    def __init__(self, config: ModelConfig, *, last: bool) -> None:
        super().__init__()
        self.injector = Injector(config)
        self.extractor = Extractor(config)
        extra = LAST_EXTRACTORS if last else 0
        self.extra_extractors = nn.ModuleList(Extractor(config) for _ in range(extra))

    def extract(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Update the cells of all pictures, (B, L, D), by tokens (B, N, D)."""
        for extractor in (self.extractor, *self.extra_extractors):
            features = extractor(features, tokens)
        return features

    def fold(self) -> None:
        """Move constant factors into weights."""
        self.injector.fold()
        for module in self.modules():
            if isinstance(module, Extractor):
                module.attn.fold()


def as_picture(cells: Tensor, grid: Grid) -> Tensor:
    """(B, rows * columns, D) to (B, D, rows, columns)."""
    return cells.transpose(1, 2).reshape(-1, cells.shape[2], *grid)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return conv, BatchNorm(outputs), nn.ReLU()


def _attention(
    config: ModelConfig, queries: tuple[Grid, ...], pictures: tuple[Grid, ...]
) -> DeformableAttention:
    section = adapter_section(config)
    sizes = config.embed_dim, section.deform_heads, section.num_points
    return DeformableAttention(*sizes, queries=queries, pictures=pictures)
