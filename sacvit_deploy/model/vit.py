"""The body of DeiT and of LV-ViT: stem, pre-norm blocks, final norm and heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.model.attention import Attention, Clusters, CrossAttention
from sacvit_deploy.model.stems import STEMS, ConvStem
from sacvit_deploy.model.vision_model import VisionModel

_INIT_STD = 0.02


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int, outputs: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width if outputs is None else outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D), or to the number of outputs."""
        result: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return result


class ResidualBlock(nn.Module):
    """What the blocks have in common: norms, an attention, the MLP and the residual sums.

    LV-ViT's blocks scale both branches.
    """

    attn: Attention | CrossAttention

    def __init__(self, config: ModelConfig, attention: Attention | CrossAttention) -> None:
        super().__init__()
        width, eps = config.embed_dim, config.layer_norm_eps
        # The order in which random weights are drawn.
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, round(width * config.mlp_ratio))
        self.branch_scale = config.residual_scale

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add what the attention gave to x, then the MLP of the sum; all (B, L, D)."""
        x = x + self._scaled(attended)
        return x + self._scaled(self.mlp(self.norm2(x)))

    def _scaled(self, branch: Tensor) -> Tensor:
        return branch if self.branch_scale == 1 else branch * self.branch_scale

    def branch_ends(self) -> tuple[nn.Linear, nn.Linear]:
        """The last layer of each branch."""
        return self.attn.proj, self.mlp.fc2

    @torch.no_grad()
    def fold_scale(self) -> None:
        """Move the scales of the query and of the branches into the weights."""
        self.attn.fold_scale()
        for layer in self.branch_ends():
            layer.weight.mul_(self.branch_scale)
            layer.bias.mul_(self.branch_scale)
        self.branch_scale = 1.0


class Block(ResidualBlock):
    """Pre-norm transformer block of DeiT. SAC-ViT's Eq. 6 prints post-norm but means DeiT's."""

    attn: Attention

    def __init__(self, config: ModelConfig) -> None:
        attention = Attention(config.embed_dim, config.num_heads, qkv_bias=config.qkv_bias)
        super().__init__(config, attention)

    def forward(
        self, x: Tensor, clusters: Clusters | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(B, L, D) to (B, L, D); see `Attention.forward` for the mask."""
        return self.after_attention(x, self.attn(self.norm1(x), clusters, mask))

    def forward_with_class_row(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return also the class row of the scores before the softmax, (B, heads, L, 1)."""
        attended, class_row = self.attn.forward_with_class_row(self.norm1(x))
        return self.after_attention(x, attended), class_row

    def class_token(
        self, x: Tensor, clusters: Clusters | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The class token of the result alone, (B, L, D) to (B, 1, D)."""
        return self.after_attention(x[:, :1], self.attn.class_token(self.norm1(x), clusters, mask))


class Body(VisionModel):
    """Stem and blocks of networks of DeiT's blocks, with DeiT's and LV-ViT's names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.patch_embed: nn.Module = STEMS[config.stem](config)
        self.blocks = nn.ModuleList(self.make_block(index) for index in range(config.depth))

    def make_block(self, index: int) -> ResidualBlock:
        """Make block `index`."""
        return Block(self.config)

    def encoder(self) -> list[Block]:
        """The blocks in order."""
        return [cast("Block", block) for block in self.blocks]

    def fold(self) -> None:
        """See `VisionModel.fold`."""
        if isinstance(self.patch_embed, ConvStem):
            self.patch_embed = self.patch_embed.folded()
        for block in self.blocks:
            cast("ResidualBlock", block).fold_scale()

    def branch_ends(self) -> list[Sequence[nn.Module]]:
        """See `VisionModel.branch_ends`."""
        return [cast("ResidualBlock", block).branch_ends() for block in self.blocks]

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


class Backbone(Body):
    """A body with a norm and a head at its end."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.embed_dim, config.num_classes)


class ClassTokenBackbone(Backbone):
    """A backbone with a class token and a head on it; in LV-ViT, a second head on the patches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        if config.aux_weight:
            self.aux_head = nn.Linear(config.embed_dim, config.num_classes)

    def answer(self, x: Tensor, clusters: Clusters | None = None) -> Tensor:
        """Run all blocks on a sequence, class token first, (B, L, D): logits (B, C).

        The last block computes the class token alone if nothing else of it is read.
        """
        *blocks, last = self.encoder()
        for block in blocks:
            x = block(x, clusters)
        x = last(x, clusters) if self.config.aux_weight else last.class_token(x, clusters)
        return self.classify(self.norm(x))

    def classify(self, tokens: Tensor, *, mean: bool = False) -> Tensor:
        """Logits (B, C) of a sequence after the last norm, class token first (B, L, D).

        With a head on the patches, the largest logit that any token but the first has for a class
        is added at its weight; with `mean` the sum is divided by the sum of both weights.
        """
        logits: Tensor = self.head(tokens[:, 0])
        weight = self.config.aux_weight
        if not weight:
            return logits
        patches = tokens[:, 1:]
        # As rows of one matrix: a Gemm, like the other head.
        each = self.aux_head(patches.flatten(0, 1)).unflatten(0, (-1, patches.shape[1]))
        logits = logits + weight * each.amax(dim=1)
        return logits / (1 + weight) if mean else logits

    def position_table(self, tokens: int) -> nn.Parameter:
        """Make a learned table for the class token and `tokens` patches, (1, tokens+1, D)."""
        return nn.Parameter(torch.zeros(1, tokens + 1, self.config.embed_dim))

    def with_class_token(self, table: Tensor, *parts: Tensor) -> Tensor:
        """Join the class token at its position in a table with tokens (B, L, D) (Eq. 2)."""
        class_token = (self.cls_token + table[:, :1]).expand(parts[0].shape[0], -1, -1)
        return torch.cat([class_token, *parts], dim=1)


class VisionTransformer(ClassTokenBackbone):
    """The dense DeiT, the baseline of every comparison."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.pos_embed = self.position_table(config.num_fine_tokens)
        self.reset_parameters()

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image (B, 3, H, W) to logits (B, C)."""
        x = self.with_class_token(self.pos_embed, self.patch_embed(image) + self.pos_embed[:, 1:])
        return self.answer(x)
