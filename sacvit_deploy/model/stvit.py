"""STViT on the DeiT body (Chang et al. 2023), without a class token.

The head takes the mean of the semantic tokens. Equations are the paper's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.stvit import pooling_windows
from sacvit_deploy.model.attention import CrossAttention
from sacvit_deploy.model.layouts import DENSE_TABLE, fit_table, warn_of_start
from sacvit_deploy.model.vit import Backbone, Block, ResidualBlock
from sacvit_deploy.spec import GraphSpec

_OUTSIDE = -100.0  # Added to the weight of a cell outside of the grid, before the softmax.
_INIT_STD = 0.02


class IntraWindowPooling(nn.Module):
    """Weighted means of windows of tokens; a small network gives the weights (Eq. 4).

    Cells outside of the grid are zero and weigh nothing.
    """

    cells: Tensor
    mask: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, semantic = config.embed_dim, config.semantic_tokens
        windows = pooling_windows(config.fine_grid, semantic.side)
        self.size = windows.size
        cells = torch.tensor(windows.cells)
        outside = cells < 0
        # The last row of the padded sequence is zero.
        self.register_buffer("cells", cells.masked_fill(outside, config.num_fine_tokens), False)
        self.register_buffer("mask", outside.float() * _OUTSIDE, False)
        self.learned = semantic.pooling == "intra"
        if self.learned:
            self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
            self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
            self.weight = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, S, D)."""
        padded = nn.functional.pad(x, (0, 0, 0, 1))
        windows = padded[:, self.cells]  # (B, S, cells, D)
        weights = torch.softmax(self._scores(windows) + self.mask, dim=-1)
        return (weights[:, :, None] @ windows)[:, :, 0]

    def _scores(self, windows: Tensor) -> Tensor:
        """Scores of the cells, (B, S, cells, D) to (B, S, cells)."""
        if not self.learned:
            return windows.new_zeros(windows.shape[:3])
        batch, tokens, cells, width = windows.shape
        images = windows.reshape(batch * tokens, *self.size, width).permute(0, 3, 1, 2)
        mixed = self.conv(images).permute(0, 2, 3, 1).reshape(windows.shape)
        # A sum instead of a product with one column, which INT8 would round.
        scores = (nn.functional.gelu(self.norm(mixed)) * self.weight.weight).sum(dim=-1)
        return scores.reshape(batch, tokens, cells)


class SemanticBlock(ResidualBlock):
    """A block of the semantic token generation module: the image tokens stay as they are."""

    attn: CrossAttention

    def __init__(self, config: ModelConfig) -> None:
        attention = CrossAttention(config.embed_dim, config.num_heads, qkv_bias=config.qkv_bias)
        super().__init__(config, attention)

    def forward(self, queries: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic tokens (B, S, D) attend to others (B, L, D) (Eq. 1 and 2).

        Returns:
            The new semantic tokens (B, S, D), and the mean over heads of what each takes of the
            others, (B, S, L).
        """
        attended, shares = self.attn(self.norm1(queries), self.norm1(others))
        return self.after_attention(queries, attended), shares


class SemanticOutput(NamedTuple):
    """What the network gives.

    Attributes:
        logits: (B, C).
        attention: Share of each image token in each semantic token, in the last block that sees
            both, mean over heads, (B, S, N). With the shares of semantic tokens it adds up to 1.
    """

    logits: Tensor
    attention: Tensor


class SemanticViT(Backbone):
    """A Vision Transformer whose later blocks see a few semantic tokens alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        semantic, width = config.semantic_tokens, config.embed_dim
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_fine_tokens, width))
        self.pooling = IntraWindowPooling(config)
        if semantic.global_centers:
            self.global_centers = nn.Parameter(torch.zeros(1, semantic.tokens, width))
        self.reset_parameters()

    def make_block(self, index: int) -> ResidualBlock:
        """Make block `index`."""
        generating = index in self.config.semantic_tokens.generating
        return SemanticBlock(self.config) if generating else Block(self.config)

    def reset_parameters(self) -> None:
        """Initialise as DeiT, and the global centers by Gaussian noise."""
        super().reset_parameters()
        if self.config.semantic_tokens.global_centers:
            nn.init.trunc_normal_(self.global_centers, std=_INIT_STD)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image (B, 3, H, W) to logits (B, C)."""
        return self.forward_with_attention(image).logits

    def forward_with_attention(self, image: Tensor) -> SemanticOutput:
        """The same, and what the semantic tokens are made of."""
        generating = self.config.semantic_tokens.generating
        x = self.patch_embed(image) + self.pos_embed
        for block in self.blocks[: generating.start]:
            x = block(x)
        tokens, others = self.pooling(x), x
        for index in generating:
            tokens, shares = self.blocks[index](tokens, others)
            others = torch.cat([tokens, x], dim=1)
            if index == generating.start and self.config.semantic_tokens.global_centers:
                # In the queries of the next block alone; its keys are without them (Eq. 2).
                tokens = tokens + self.global_centers
        for block in self.blocks[generating.stop :]:
            tokens = block(tokens)
        logits = self.head(self.norm(tokens).mean(dim=1))
        return SemanticOutput(logits, shares[:, :, -x.shape[1] :])


class SemanticView(nn.Module):
    """The network with its attention: image to logits and attention."""

    def __init__(self, model: SemanticViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs in the order of the graph's contract."""
        out = self.model.forward_with_attention(image)
        return out.logits, out.attention


def semantic_view(model: SemanticViT, _: GraphSpec) -> nn.Module:
    """The view of the network's one graph."""
    return SemanticView(model)


def semantic_layout(
    own: dict[str, Tensor], config: ModelConfig, stored: ModelConfig | None
) -> None:
    """Complete the tensors of a checkpoint, in place.

    A position table of another resolution is interpolated. A dense DeiT starts the training: its
    class token goes, the pooling starts as the mean, and the global centers at zero.
    """
    if own.pop("cls_token", None) is not None:
        warn_of_start(config)
        if DENSE_TABLE in own:
            own[DENSE_TABLE] = own[DENSE_TABLE][:, 1:]
        _split_projections(own, config)
        own.update(_neutral_start(config))
    grid = stored.fine_grid if stored else None
    fit_table(own, DENSE_TABLE, config.fine_grid, grid, class_rows=0)


def _split_projections(own: dict[str, Tensor], config: ModelConfig) -> None:
    """Split qkv, of which the first rows are the query's, in the blocks that generate tokens."""
    for index in config.semantic_tokens.generating:
        for kind in ("weight", "bias"):
            name = f"blocks.{index}.attn.qkv.{kind}"
            if name in own:
                qkv, width = own.pop(name), config.embed_dim
                own[name.replace("qkv", "q")] = qkv[:width]
                own[name.replace("qkv", "kv")] = qkv[width:]


def _neutral_start(config: ModelConfig) -> dict[str, Tensor]:
    """Weights of a pooling that gives the mean of each window but can learn, and zero centers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pooling = IntraWindowPooling(config)
    state = {f"pooling.{name}": tensor for name, tensor in pooling.state_dict().items()}
    if "pooling.weight.weight" in state:
        state["pooling.weight.weight"].zero_()
    if config.semantic_tokens.global_centers:
        tokens = config.semantic_tokens.tokens
        state["global_centers"] = torch.zeros(1, tokens, config.embed_dim)
    return state
