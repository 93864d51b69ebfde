"""The two-stage network of every family: SAC-ViT, CF-ViT and LF-ViT by configuration.

Equations are those of Hu et al., "SAC-ViT: Semantic-Aware Clustering Vision Transformer with Early
Exit"; `sacvit_deploy.families` names the paper of each family.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.windows import OUTSIDE, window_members, window_sums
from sacvit_deploy.model.attention import ClusterKernel, Clusters
from sacvit_deploy.model.ranking import ranking_key
from sacvit_deploy.model.vision_model import Answers
from sacvit_deploy.model.vit import ClassTokenBackbone, Mlp


class EarlyExitOutput(NamedTuple):
    """Output of the first stage, with the input of the second.

    Attributes:
        logits: (B, C).
        score: Moving average of the class attention of every coarse token, (B, N) (Eq. 10).
        embeddings: Patch embeddings with coarse positions, the input of block 0, (B, N, D).
        features: Final tokens after the last norm, (B, N, D).
    """

    logits: Tensor
    score: Tensor
    embeddings: Tensor
    features: Tensor


class TokenSelection(NamedTuple):
    """The split of the coarse tokens for the second stage.

    Attributes:
        target: Coarse indices of the targets, highest score first, (B, M).
        non_target: Coarse indices of the others, highest score first, (B, N-M).
        fine: Fine indices of the targets' children, four per target, (B, 4M).
    """

    target: Tensor
    non_target: Tensor
    fine: Tensor


class TwoStageOutput(NamedTuple):
    """The reference result: both stages for every image.

    Attributes:
        early_exit: Output of the first stage.
        refined_logits: Logits of the second stage, (B, C).
        selection: Refined and reused tokens.
    """

    early_exit: EarlyExitOutput
    refined_logits: Tensor
    selection: TokenSelection


def halve_image(image: Tensor) -> Tensor:
    """Halve (B, 3, H, W) as CF-ViT's code does: bilinear, aligned corners."""
    height, width = image.shape[-2:]
    return nn.functional.interpolate(
        image, size=(height // 2, width // 2), mode="bilinear", align_corners=True
    )


def resize_position_table(
    table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Interpolate a table of rows*columns patches bicubically, (1, N, D) or (1, 1+N, D).

    A row before those of the patches is the class token's and stays.
    """
    if grid == new_grid:
        return table
    class_rows = table.shape[1] - grid[0] * grid[1]
    patches = table[:, class_rows:].reshape(1, *grid, table.shape[-1]).permute(0, 3, 1, 2)
    patches = nn.functional.interpolate(patches, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :class_rows], patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def fine_index(coarse: Tensor, coarse_columns: int) -> Tensor:
    """Find the children of coarse tokens in the fine grid (Eq. 11): (B, M) to (B, 4M)."""
    first = 4 * coarse - 2 * (coarse % coarse_columns)
    row = 2 * coarse_columns
    return torch.stack([first, first + 1, first + row, first + row + 1], dim=-1).flatten(-2)


def select_tokens(
    score: Tensor, config: ModelConfig, num_targets: int | None = None
) -> TokenSelection:
    """Split the coarse tokens by score (B, N), as `runtime.algorithm.select_tokens` does."""
    targets = config.num_targets if num_targets is None else num_targets
    if (side := config.stages.window) is not None:
        members = torch.from_numpy(window_members(config.coarse_grid, side).copy())
        sums = window_sums(score, config.coarse_grid, side)
        best = ranking_key(sums).argmax(1)
        inside = torch.index_select(members.to(score.device), 0, best)
        score = torch.where(inside, score, OUTSIDE)
    key = ranking_key(score)
    order = torch.topk(key, key.shape[1], dim=1).indices
    target, non_target = order[:, :targets], order[:, targets:]
    return TokenSelection(target, non_target, fine_index(target, config.coarse_grid[1]))


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick the rows of (B, L, D) at index (B, K): (B, K, D)."""
    return torch.gather(tokens, 1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


class FeatureFusion(nn.Module):
    """Projection of a coarse token's final feature to its four children ("reuse" in CF-ViT)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = Mlp(width, round(width * config.mlp_ratio))

    def forward(self, target_features: Tensor) -> Tensor:
        """(B, M, D) to (B, 4M, D), every row four times in a row."""
        fused: Tensor = self.mlp(self.norm(target_features))
        return fused.unsqueeze(2).expand(-1, -1, 4, -1).flatten(1, 2)


class TwoStageViT(ClassTokenBackbone):
    """A Vision Transformer with an early exit on coarse tokens and a refine stage."""

    def __init__(self, config: ModelConfig, *, cluster_kernel: ClusterKernel = "masked") -> None:
        super().__init__(config)
        self.cluster_kernel = cluster_kernel
        if config.stages.position_tables == 2:
            self.pos_embed_coarse = self.position_table(config.num_coarse_tokens)
        self.pos_embed_fine = self.position_table(config.num_fine_tokens)
        self.fusion = FeatureFusion(config)
        self.reset_parameters()

    def coarse_positions(self) -> Tensor:
        """The coarse position table (1, N+1, D): learned, or interpolated from the fine one."""
        if self.config.stages.position_tables == 2:
            return self.pos_embed_coarse
        return resize_position_table(
            self.pos_embed_fine, self.config.fine_grid, self.config.coarse_grid
        )

    def early_exit(self, image: Tensor) -> EarlyExitOutput:
        """Run the first stage on the half-size image, and score every coarse token.

        Args:
            image: Normalised, (B, 3, H, W) in full resolution.
        """
        positions = self.coarse_positions()
        # Before the class token joins, so that the output is not a slice of the sequence.
        embeddings = self.patch_embed(halve_image(image)) + positions[:, 1:]
        x = self.with_class_token(positions, embeddings)
        class_rows = []
        for index, block in enumerate(self.encoder()):
            if index < self.config.stages.score_first_block:
                x = block(x)
            else:
                x, class_row = block.forward_with_class_row(x)
                class_rows.append(class_row)
        x = self.norm(x)
        score = self._score(torch.cat(class_rows, dim=3))
        # CF-ViT divides the sum of both heads' logits in this stage only.
        return EarlyExitOutput(self.classify(x, mean=True), score, embeddings, x[:, 1:])

    def _score(self, class_rows: Tensor) -> Tensor:
        """Average over heads and, moving, over blocks (Eq. 10): (B, N).

        Eq. 10 is linear, so that one weighted sum at the end equals a step in every block.

        Args:
            class_rows: Before the softmax, one for each block that counts, (B, heads, N+1, blocks).
        """
        beta, blocks = self.config.stages.score_beta, class_rows.shape[3]
        weights = [(1 - beta) * beta ** (blocks - 1 - index) for index in range(blocks)]
        if self.config.stages.score_start == "first":
            weights[0] /= 1 - beta
        of_block = class_rows.new_tensor(weights) / self.config.num_heads
        attention = torch.softmax(class_rows, dim=2) * of_block
        return attention.sum(dim=(1, 3))[:, 1:]

    def refine(self, image: Tensor, coarse: EarlyExitOutput, selection: TokenSelection) -> Tensor:
        """Run the second stage: targets in full resolution, other tokens reused. Logits (B, C).

        Args:
            image: Normalised, (B, 3, H, W) in full resolution, the same rows as `coarse`.
            coarse: Output of the first stage.
            selection: Any split of the coarse tokens. An empty `non_target` refines every token,
                as in the first phase of training.
        """
        x = self.refine_sequence(image, coarse, selection)
        clusters = None
        stages = self.config.stages
        if stages.attention == "clustered" and selection.non_target.shape[1] > 0:
            clusters = Clusters(selection.fine.shape[1], stages.cls_update, self.cluster_kernel)
        return self.answer(x, clusters)

    def refine_sequence(
        self, image: Tensor, coarse: EarlyExitOutput, selection: TokenSelection
    ) -> Tensor:
        """Make the second stage's input of block 0: `[class; 4M targets; N-M non-targets]`."""
        positions = self.pos_embed_fine
        fine = self.patch_embed(image) + positions[:, 1:]
        fused = self.fusion(gather_tokens(coarse.features, selection.target))
        targets = gather_tokens(fine, selection.fine) + fused
        embedded = self.config.stages.non_target_source == "embedding"
        reused = coarse.embeddings if embedded else coarse.features
        others = gather_tokens(reused, selection.non_target)
        return self.with_class_token(positions, targets, others)

    def answers(self, image: Tensor, *, all_tokens: bool = False) -> Answers:
        """See `VisionModel.answers`; no picture exits."""
        coarse = self.early_exit(image)
        count = self.config.num_coarse_tokens if all_tokens else None
        # The selection has no gradient; without detach the sort would keep the graph.
        selection = select_tokens(coarse.score.detach(), self.config, num_targets=count)
        return Answers(self.refine(image, coarse, selection), coarse.logits)

    def forward(self, image: Tensor) -> TwoStageOutput:
        """Run both stages for every image of a batch (B, 3, H, W), as the reference."""
        coarse = self.early_exit(image)
        selection = select_tokens(coarse.score, self.config)
        return TwoStageOutput(coarse, self.refine(image, coarse, selection), selection)
