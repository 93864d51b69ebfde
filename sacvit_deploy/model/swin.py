"""Swin Transformer with constant gathers in place of roll, partition and merging.

Names of modules and parameters are those of the authors' code. Liu et al., "Swin Transformer:
Hierarchical Vision Transformer using Shifted Windows" (ICCV 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.swin import Stage, swin_section, swin_stages
from sacvit_deploy.model.vision_model import VisionModel
from sacvit_deploy.model.vit import Mlp
from sacvit_deploy.model.window_attention import StageAttention, WindowAttention, gather
from sacvit_deploy.model.windows import merging_index

INIT_STD = 0.02


@runtime_checkable
class Foldable(Protocol):
    """A module with constants that can be moved into its weights."""

    def fold(self) -> None:
        """Do so, in place."""


class StageBlock(nn.Module):
    """Norms and MLP of a pre-norm block around its attention."""

    def __init__(self, config: ModelConfig, stage: Stage, attention: StageAttention) -> None:
        super().__init__()
        width, eps = stage.width, config.layer_norm_eps
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, round(width * config.mlp_ratio))


class SwinBlock(StageBlock):
    """A block with attention inside windows, shifted or not."""

    def __init__(self, config: ModelConfig, stage: Stage, *, shifted: bool) -> None:
        window = swin_section(config).window
        attention = WindowAttention(stage, window, qkv_bias=config.qkv_bias)
        super().__init__(config, stage, attention)
        self.grid = stage.grid
        self.shift = window // 2 if shifted and _shifts(config, stage) else 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D), tokens row by row."""
        x = x + self.attn(self.norm1(x), self.grid, self.shift)
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, config: ModelConfig, stage: Stage) -> None:
        super().__init__()
        width = stage.width
        self.grid = stage.grid
        self.norm = nn.LayerNorm(4 * width, eps=config.layer_norm_eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, rows * columns, D) to (B, ceil(rows / 2) * ceil(columns / 2), 2D)."""
        index = merging_index(self.grid)
        merged = gather(x, index).reshape(-1, len(index), 4 * x.shape[2])
        result: Tensor = self.reduction(self.norm(merged))
        return result


class SwinStage(nn.Module):
    """The blocks of one resolution, and the merging after them."""

    def __init__(self, config: ModelConfig, stage: Stage, *, merges: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.make_blocks(config, stage))
        self.downsample = PatchMerging(config, stage) if merges else None

    def make_blocks(self, config: ModelConfig, stage: Stage) -> Iterator[nn.Module]:
        """The blocks in order; every second one is shifted."""
        for number in range(stage.depth):
            yield SwinBlock(config, stage, shifted=number % 2 == 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks on (B, L, D), without the merging."""
        for block in self.blocks:
            x = block(x)
        return x


class PatchEmbedding(nn.Module):
    """Patches of the picture, each projected and normalised."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        patch, width = config.patch_size, config.embed_dim
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, tokens, D), row by row."""
        tokens: Tensor = self.norm(self.proj(image).flatten(2).transpose(1, 2))
        return tokens


class SwinTransformer(VisionModel):
    """The dense Swin Transformer, for classes or for features.

    Its `forward` gives logits (B, C), or the features c2 to c5, each (B, D, rows, columns).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.patch_embed = self.make_stem(config)
        parts = swin_stages(config)
        self.layers = nn.ModuleList(
            self.make_stage(number, stage) for number, stage in enumerate(parts)
        )
        eps, width = config.layer_norm_eps, parts[-1].width
        if swin_section(config).task == "features":
            for number, stage in enumerate(parts):
                self.add_module(f"norm{number}", nn.LayerNorm(stage.width, eps=eps))
        else:
            self.norm = nn.LayerNorm(width, eps=eps)
            self.head = nn.Linear(width, config.num_classes)
        self.reset_parameters()

    def make_stem(self, config: ModelConfig) -> nn.Module:
        """The module that makes tokens of a picture."""
        return PatchEmbedding(config)

    def make_stage(self, number: int, stage: Stage) -> SwinStage:
        """The blocks of one stage."""
        return SwinStage(
            self.config, stage, merges=number + 1 < len(swin_section(self.config).depths)
        )

    def stage_outputs(self, image: Tensor) -> Iterator[Tensor]:
        """Run the stages on a normalised image (B, 3, H, W): tokens of each, (B, L, D)."""
        x = self.patch_embed(image)
        for layer in self.layers:
            stage = cast("SwinStage", layer)
            x = stage(x)
            yield x
            if stage.downsample is not None:
                x = stage.downsample(x)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Normalised image (B, 3, H, W) to logits, or features."""
        outputs = list(self.stage_outputs(image))
        if swin_section(self.config).task == "features":
            return tuple(map(self._feature, range(len(outputs)), outputs))
        logits: Tensor = self.head(self.norm(outputs[-1]).mean(dim=1))
        return logits

    def _feature(self, number: int, tokens: Tensor) -> Tensor:
        norm, grid = self.get_submodule(f"norm{number}"), swin_stages(self.config)[number].grid
        tokens = norm(tokens).transpose(1, 2)
        return tokens.reshape(-1, tokens.shape[1], *grid)

    def fold(self) -> None:
        """See `VisionModel.fold`."""
        for module in list(self.modules())[1:]:
            if isinstance(module, Foldable):
                module.fold()

    def branch_ends(self) -> list[Sequence[nn.Module]]:
        """See `VisionModel.branch_ends`."""
        stages = [cast("SwinStage", layer) for layer in self.layers]
        blocks = [cast("StageBlock", block) for stage in stages for block in stage.blocks]
        return [(block.attn.proj, block.mlp.fc2) for block in blocks]

    def reset_parameters(self) -> None:
        """Initialise as Swin: truncated normal weights and bias tables, zero biases, unit norms."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=INIT_STD)


def _shifts(config: ModelConfig, stage: Stage) -> bool:
    """Whether a stage has shifted windows. A classifier's has none if one window is all of it."""
    return swin_section(config).task == "features" or min(stage.grid) > swin_section(config).window
