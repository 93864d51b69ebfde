"""STViT-R on Swin: the third stage computes with semantic tokens and recovers the image tokens.

Chang et al., "Making Vision Transformers Efficient from A Token Sparsification View" (CVPR 2023),
section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.stvit_r import SEMANTIC_STAGE, UNIT
from sacvit_deploy.families.swin import Stage, swin_section
from sacvit_deploy.model.semantic_reach import Reach, reaches_of
from sacvit_deploy.model.stems import BatchNorm, fold_batch_norm
from sacvit_deploy.model.swin import (
    INIT_STD,
    StageBlock,
    SwinBlock,
    SwinStage,
    SwinTransformer,
)
from sacvit_deploy.model.window_attention import (
    StageAttention,
    fold_scale,
    gather,
    heads_of,
    joined,
    with_padding,
    without_hidden,
)

_FIRST_LAYER_SCALE = 1e-5


class SemanticAttention(StageAttention):
    """Multi-head attention of queries to the keys in their reach (STViT Eq. 1, 2 and 6).

    Keys and values are projected once, before the windows gather them.
    """

    def __init__(self, stage: Stage, *, qkv_bias: bool) -> None:
        super().__init__(stage)
        width = stage.width
        self.q = nn.Linear(width, width, bias=qkv_bias)
        self.kv = nn.Linear(width, 2 * width, bias=qkv_bias)

    def forward(self, queries: Tensor, tokens: Tensor, reach: Reach) -> Tensor:
        """Attend with queries (B, Q, D) to tokens (B, L, D): (B, Q, D)."""
        q, kv = self.q(queries), self.kv(tokens)
        if reach.queries is not None:
            q = gather(q, reach.queries)
        if reach.keys is not None:
            kv = gather(kv, reach.keys)
        length = q.shape[1]
        (query,) = heads_of(q, 1, self.num_heads, length // reach.windows)
        key, value = heads_of(kv, 2, self.num_heads, kv.shape[1] // reach.windows)
        scores = self.scores(query, key)
        if reach.hidden is not None:
            scores = without_hidden(scores, reach.hidden)
        merged = joined(torch.softmax(scores, dim=-1) @ value, length)
        if reach.places is not None:
            merged = gather(merged, reach.places)
        result: Tensor = self.proj(merged)
        return result

    @torch.no_grad()
    def fold(self) -> None:
        """Move the scale of the query into its weights."""
        fold_scale(self.q, self.scale)
        self.scale = 1.0


class SemanticBlock(StageBlock):
    """A block whose queries and keys differ; one norm serves both."""

    def __init__(self, config: ModelConfig, stage: Stage) -> None:
        super().__init__(config, stage, SemanticAttention(stage, qkv_bias=config.qkv_bias))
        first = torch.full((stage.width,), _FIRST_LAYER_SCALE)
        self.layer_scale_1 = nn.Parameter(first)
        self.layer_scale_2 = nn.Parameter(first.clone())
        self.folded = False

    def forward(
        self, queries: Tensor, tokens: Tensor, reach: Reach, *, shortcut: bool = True
    ) -> Tensor:
        """Update queries (B, Q, D) by tokens (B, L, D).

        Args:
            queries: What is updated.
            tokens: Where keys and values come from.
            reach: Which queries attend to which keys.
            shortcut: Whether the attention is added to the queries, or replaces them.
        """
        if reach.keys is not None and reach.keys.max() == tokens.shape[1]:
            tokens = with_padding(tokens)
        normed = self.norm1(queries)
        keys = normed if tokens is queries else self.norm1(tokens)
        attended = self.attn(normed, keys, reach)
        if not self.folded:
            attended = attended * self.layer_scale_1
        x = queries + attended if shortcut else attended
        mixed = self.mlp(self.norm2(x))
        result: Tensor = x + (mixed if self.folded else mixed * self.layer_scale_2)
        return result

    @torch.no_grad()
    def fold(self) -> None:
        """Move the scale of both branches into their last layers."""
        for layer, scale in (
            (self.attn.proj, self.layer_scale_1),
            (self.mlp.fc2, self.layer_scale_2),
        ):
            layer.weight.mul_(scale[:, None])
            layer.bias.mul_(scale)
        del self.layer_scale_1, self.layer_scale_2
        self.folded = True


class SemanticStage(SwinStage):
    """Units of six blocks: one of Swin, five with semantic tokens."""

    def __init__(self, config: ModelConfig, stage: Stage, *, merges: bool) -> None:
        super().__init__(config, stage, merges=merges)
        section = swin_section(config)
        self.shortcut = section.shortcut or section.task == "features"
        self.reaches = reaches_of(config, stage.grid)
        # The global centres, row by row as published.
        shape = 1, len(self.reaches.pooled), stage.width
        self.semantic_token2 = nn.Parameter(torch.zeros(shape)) if section.use_global else None

    def make_blocks(self, config: ModelConfig, stage: Stage) -> Iterator[nn.Module]:
        """See `SwinStage.make_blocks`."""
        for number in range(stage.depth):
            if number % UNIT == 0:
                yield SwinBlock(config, stage, shifted=False)
            else:
                yield SemanticBlock(config, stage)

    def forward(self, x: Tensor) -> Tensor:
        """Run the units on (B, L, D)."""
        centers = None
        if self.semantic_token2 is not None:
            centers = gather(self.semantic_token2, self.reaches.order)
        for start in range(0, len(self.blocks), UNIT):
            base, *semantic, recovery = self.blocks[start : start + UNIT]
            x = base(x)
            # As published, the centres are learned for the first unit alone.
            tokens = self._semantic_tokens(x, semantic, None if start else centers)
            x = recovery(x, tokens, self.reaches.recovery)
        return x

    def _semantic_tokens(
        self, x: Tensor, blocks: list[nn.Module], centers: Tensor | None
    ) -> Tensor:
        """Generate semantic tokens (B, S, D) of image tokens (B, L, D), window by window."""
        first, second, local, joint = blocks
        reaches = self.reaches
        pooled = gather(x, reaches.pooled).reshape(-1, *reaches.pooled.shape, x.shape[2])
        pooled = pooled.amax(dim=2)
        tokens = first(pooled, self._keys(pooled, x), reaches.first, shortcut=self.shortcut)
        queries = tokens if centers is None else tokens + centers
        tokens = second(queries, self._keys(tokens, x), reaches.second)
        tokens = local(tokens, tokens, reaches.local)
        result: Tensor = joint(tokens, tokens, Reach())
        return result

    def _keys(self, semantic: Tensor, image: Tensor) -> Tensor:
        return torch.cat([semantic, image], dim=1) if self.reaches.with_semantic else image


class ConvNorm(nn.Module):
    """A 3 x 3 convolution of stride 2, and BatchNorm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn: nn.Module = BatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H/2, W/2)."""
        result: Tensor = self.bn(self.c(x))
        return result

    def fold(self) -> None:
        """Move the normalisation into the convolution."""
        fold_batch_norm(self, "c", "bn")


class SemanticStem(nn.Module):
    """Two convolutions in place of the projection of patches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.proj = nn.Sequential(
            ConvNorm(3, width // 2), nn.Hardswish(), ConvNorm(width // 2, width), nn.Hardswish()
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, tokens, D), row by row."""
        tokens: Tensor = self.proj(image).flatten(2).transpose(1, 2)
        return tokens


class SemanticSwin(SwinTransformer):
    """STViT-R-Swin, for classes or for features."""

    def make_stem(self, config: ModelConfig) -> nn.Module:
        """See `SwinTransformer.make_stem`."""
        return SemanticStem(config)

    def make_stage(self, number: int, stage: Stage) -> SwinStage:
        """See `SwinTransformer.make_stage`."""
        if number != SEMANTIC_STAGE:
            return super().make_stage(number, stage)
        return SemanticStage(self.config, stage, merges=True)

    def reset_parameters(self) -> None:
        """See `SwinTransformer.reset_parameters`."""
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if name.endswith("semantic_token2"):
                nn.init.trunc_normal_(parameter, std=INIT_STD)
