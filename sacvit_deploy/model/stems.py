"""From a picture to tokens: one projection of each patch, or LV-ViT's convolutions."""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.vit import STEM_WIDTH

_EPS, _MOMENTUM = 1e-5, 0.1


class Stem(Protocol):
    """Makes tokens of a picture."""

    proj: nn.Conv2d

    def __call__(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, tokens, D) in row-major order (Eq. 1)."""


class PatchEmbedding(nn.Module):
    """Non-overlapping patches, each projected to the embedding width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(3, config.embed_dim, kernel_size=patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """See `Stem.__call__`."""
        patches: Tensor = self.proj(image).flatten(2).transpose(1, 2)
        return patches


class BatchNorm(nn.Module):
    """BatchNorm over (B, C, H, W) with running statistics, and no count of the batches."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the batch in training, else by the running statistics."""
        statistics = self.running_mean, self.running_var
        scale, train = (self.weight, self.bias), self.training
        return nn.functional.batch_norm(x, *statistics, *scale, train, _MOMENTUM, _EPS)


class ConvStem(nn.Module):
    """LV-ViT's stem: three convolutions at half the resolution, then one projection.

    Both sides of the picture are halved by the first convolution, so that the last one covers
    patches of half the size.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, patch = STEM_WIDTH, config.patch_size // 2
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1: nn.Module = BatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2: nn.Module = BatchNorm(width)
        self.conv3 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn3: nn.Module = BatchNorm(width)
        self.proj = nn.Conv2d(width, config.embed_dim, kernel_size=patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """See `Stem.__call__`."""
        x = torch.relu(self.bn1(self.conv1(image)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        patches: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return patches

    def folded(self) -> ConvStem:
        """A copy that computes the same with BatchNorm in the weights of the convolutions."""
        stem = copy.deepcopy(self)
        for number in (1, 2, 3):
            fold_batch_norm(stem, f"conv{number}", f"bn{number}")
        return stem


def fold_batch_norm(module: nn.Module, conv_name: str, norm_name: str) -> None:
    """Move the BatchNorm after a convolution without bias into it; done once, it stays."""
    conv, norm = getattr(module, conv_name), getattr(module, norm_name)
    if isinstance(norm, BatchNorm):
        conv.weight, conv.bias = fuse_conv_bn_weights(
            *(conv.weight, None, norm.running_mean, norm.running_var),
            *(_EPS, norm.weight, norm.bias),
        )
        setattr(module, norm_name, nn.Identity())


STEMS = {"patch": PatchEmbedding, "conv": ConvStem}
