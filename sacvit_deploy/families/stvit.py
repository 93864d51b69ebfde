"""STViT on the DeiT body: a few semantic tokens take the place of the image tokens.

Chang et al., "Making Vision Transformers Efficient from A Token Sparsification View" (CVPR 2023).
The first blocks see all image tokens. The blocks of the semantic token generation module gather
these in `side`² semantic tokens, and the rest of the network sees only them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sacvit_deploy.decode import check_field, check_types
from sacvit_deploy.families.family import Family
from sacvit_deploy.families.vit import (
    block_macs,
    body_shapes,
    check_patches,
    deit_presets,
    demo_preset,
    image_spec,
    logits_spec,
    mlp_macs,
    patch_macs,
)
from sacvit_deploy.spec import BATCH, SEMANTIC_ATTENTION, InputKind, Role, Selection, TensorSpec

if TYPE_CHECKING:
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.families.family import Counted, Tensors


@dataclass(frozen=True)
class SemanticConfig:
    """Configuration of the semantic tokens.

    Attributes:
        first_block: 0-based block in which the semantic tokens begin; those before it see all
            image tokens.
        layers: Blocks that attend to the image tokens from the semantic ones, at least 2.
        side: The semantic tokens start as the means of `side` x `side` windows.
        pooling: Weights of the tokens of a window in its mean: `intra`, a small network (Eq. 4), or
            `mean`, all alike.
        global_centers: Whether the queries of the second layer get a learned term (Eq. 2).

    Raises:
        ConfigError: A value is of another type or out of range.
    """

    first_block: int = 4
    layers: int = 2
    side: int = 4
    pooling: Literal["intra", "mean"] = "intra"
    global_centers: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        check_field(self.first_block >= 0, "first_block", self.first_block, "0 or more")
        check_field(self.layers >= 2, "layers", self.layers, "2 or more")
        check_field(self.side >= 1, "side", self.side, "1 or more")

    @property
    def tokens(self) -> int:
        """Number of semantic tokens."""
        return self.side**2

    @property
    def generating(self) -> range:
        """The blocks that make the semantic tokens."""
        return range(self.first_block, self.first_block + self.layers)


@dataclass(frozen=True)
class PoolingWindows:
    """Windows of a grid of tokens, row-major, all of one size.

    Attributes:
        size: (rows, columns) of every window.
        cells: Tokens of each window, row-major; -1 for a cell outside of the grid.
    """

    size: tuple[int, int]
    cells: tuple[tuple[int, ...], ...]


def pooling_windows(grid: tuple[int, int], side: int) -> PoolingWindows:
    """Split a grid of (rows, columns) tokens into `side` x `side` windows."""
    rows, columns = (_spans(length, side) for length in grid)
    cells = tuple(
        tuple(-1 if min(r, c) < 0 else r * grid[1] + c for r in high for c in wide)
        for high in rows
        for wide in columns
    )
    return PoolingWindows((len(rows[0]), len(columns[0])), cells)


def _spans(length: int, side: int) -> list[list[int]]:
    """Split `length` cells into `side` spans of one size; -1 for a cell outside.

    The border is padded as in the authors' code (14 = 1 + 12 + 1 of 4 x 4) while the outer spans
    keep most of their cells. Otherwise spans overlap as in adaptive pooling.
    """
    size = math.ceil(length / side)
    before = (size * side - length) // 2
    after = size * side - length - before
    if 2 * max(before, after) < size:
        padded = [-1] * before + list(range(length)) + [-1] * after
        return [padded[size * i : size * (i + 1)] for i in range(side)]
    spans = [list(range(i * length // side, -(-(i + 1) * length // side))) for i in range(side)]
    size = max(map(len, spans))
    return [span + [-1] * (size - len(span)) for span in spans]


def on_deit(prefix: str) -> dict[str, dict[str, Any]]:
    """Presets of semantic tokens on every DeiT body and on the demo's, by name."""
    # Two of the demo's five blocks see all tokens: the others make semantic ones and use them.
    demo = SemanticConfig(first_block=2)
    return _with_tokens(deit_presets(prefix), SemanticConfig()) | _with_tokens(
        demo_preset(prefix), demo
    )


def _with_tokens(
    bodies: Mapping[str, Mapping[str, Any]], semantic: SemanticConfig
) -> dict[str, dict[str, Any]]:
    return {name: {**body, "semantic": semantic} for name, body in bodies.items()}


def _check(config: ModelConfig) -> None:
    check_patches(config)
    semantic = config.semantic_tokens
    first, layers, side = semantic.first_block, semantic.layers, semantic.side
    most = config.depth - layers
    wanted = f"0 to {most}, so that {layers} of the {config.depth} blocks can follow"
    check_field(first <= most, "first_block", first, wanted)
    shorter = min(config.fine_grid)
    wanted = f"1 to {shorter}, the shorter side of the grid of patches"
    check_field(side <= shorter, "side", side, wanted)
    check_field(config.aux_weight == 0, "aux_weight", config.aux_weight, "0: there is one head")


def _tensors(
    config: ModelConfig, _: Selection, input_kind: InputKind
) -> dict[Role, tuple[Tensors, Tensors]]:
    shape = BATCH, config.semantic_tokens.tokens, config.num_fine_tokens
    attention = TensorSpec(SEMANTIC_ATTENTION, "float32", shape)
    return {"single": ((image_spec(config, input_kind),), (logits_spec(config), attention))}


def _macs(config: ModelConfig, counted: Counted) -> dict[Role, int]:
    """Every token of every block is needed, since the head takes the mean of them."""
    semantic, width = config.semantic_tokens, config.embed_dim
    image, tokens = config.num_fine_tokens, semantic.tokens
    before = semantic.first_block * block_macs(config, image, image**2)
    after = config.depth - semantic.first_block - semantic.layers
    others = after * block_macs(config, tokens, tokens**2)
    generating = _layer_macs(config, tokens, image)
    generating += (semantic.layers - 1) * _layer_macs(config, tokens, tokens + image)
    heads = width * config.num_classes
    total = patch_macs(config, image) + before + generating + others + heads
    # The paper's Table 8 leaves the pooling out.
    return {"single": total if counted == "papers" else total + _pooling_macs(config)}


def _pooling_macs(config: ModelConfig) -> int:
    """Cost of a mean of each window; and of 3 x 3 weights a channel, and one, for its weights."""
    semantic = config.semantic_tokens
    windows = pooling_windows(config.fine_grid, semantic.side)
    cells = semantic.tokens * len(windows.cells[0])
    return cells * config.embed_dim * (11 if semantic.pooling == "intra" else 1)


def _layer_macs(config: ModelConfig, queries: int, keys: int) -> int:
    """Cost of a block with `queries` tokens that attend to `keys` others."""
    width = config.embed_dim
    linear = queries * (2 * width**2 + mlp_macs(config)) + keys * 2 * width**2
    return linear + 2 * queries * keys * width


def _stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    width = config.embed_dim
    return body_shapes(config) | {"pos_embed": (1, config.num_fine_tokens, width)}


STVIT = Family(
    name="stvit",
    title="STViT",
    presets=on_deit("stvit_"),
    files={"single": "model.onnx"},
    section="semantic",
    check=_check,
    tensors=_tensors,
    macs=_macs,
    model="sacvit_deploy.model.stvit:SemanticViT",
    view="sacvit_deploy.model.stvit:semantic_view",
    layout="sacvit_deploy.model.stvit:semantic_layout",
    checkpoint_names={},
    stored_shapes=_stored_shapes,
)
