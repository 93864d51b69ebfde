"""The DeiT body: patch embedding, pre-norm blocks, final norm and head."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.model.attention import Attention, Clusters

_INIT_STD = 0.02


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        result: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return result


class Block(nn.Module):
    """Pre-norm transformer block of DeiT. SAC-ViT's Eq. 6 prints post-norm but means DeiT's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, eps = config.embed_dim, config.layer_norm_eps
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, config.num_heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, round(width * config.mlp_ratio))

    def forward(self, x: Tensor, clusters: Clusters | None = None) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        x = x + self.attn(self.norm1(x), clusters)
        result: Tensor = x + self.mlp(self.norm2(x))
        return result

    def forward_with_class_row(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return also the class row of the attention matrix, (B, heads, 1, L)."""
        attended, class_row = self.attn.forward_with_class_row(self.norm1(x))
        x = x + attended
        return x + self.mlp(self.norm2(x)), class_row


class PatchEmbedding(nn.Module):
    """Non-overlapping patches, each projected to the embedding width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(3, config.embed_dim, kernel_size=patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, tokens, D) in row-major order (Eq. 1)."""
        patches: Tensor = self.proj(image).flatten(2).transpose(1, 2)
        return patches


class Backbone(nn.Module):
    """The common part of dense and two-stage networks, with DeiT's parameter names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.embed_dim, config.num_classes)

    def encoder(self) -> list[Block]:
        """The blocks in order."""
        return [cast("Block", block) for block in self.blocks]

    def position_table(self, tokens: int) -> nn.Parameter:
        """Make a learned table for the class token and `tokens` patches, (1, tokens+1, D)."""
        return nn.Parameter(torch.zeros(1, tokens + 1, self.config.embed_dim))

    def reset_parameters(self) -> None:
        """Initialise as DeiT: truncated normal weights and tables, zero biases, unit norms."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name == "cls_token" or name.startswith("pos_embed"):
                nn.init.trunc_normal_(parameter, std=_INIT_STD)

    def with_class_token(self, table: Tensor, *parts: Tensor) -> Tensor:
        """Join the class token at its position in a table with tokens (B, L, D) (Eq. 2)."""
        class_token = (self.cls_token + table[:, :1]).expand(parts[0].shape[0], -1, -1)
        return torch.cat([class_token, *parts], dim=1)


class VisionTransformer(Backbone):
    """The dense DeiT, the baseline of every comparison."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.pos_embed = self.position_table(config.num_fine_tokens)
        self.reset_parameters()

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image (B, 3, H, W) to logits (B, C)."""
        x = self.with_class_token(self.pos_embed, self.patch_embed(image) + self.pos_embed[:, 1:])
        for block in self.encoder():
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits
