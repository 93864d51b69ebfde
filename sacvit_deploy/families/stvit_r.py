"""STViT-R on Swin: the third stage computes with semantic tokens and recovers the image tokens.

Chang et al., "Making Vision Transformers Efficient from A Token Sparsification View" (CVPR 2023).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, NamedTuple

from sacvit_deploy.decode import check_field
from sacvit_deploy.families.swin import (
    SWIN,
    Stage,
    all_swin_presets,
    block_mlp_macs,
    check_swin,
    dense_blocks_macs,
    network_macs,
    swin_demo_preset,
    swin_section,
    swin_shapes,
    swin_stages,
    window_block_macs,
)

if TYPE_CHECKING:
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.families.family import Counted
    from sacvit_deploy.spec import Role

SEMANTIC_STAGE = 2
"""The stage with semantic tokens, counted from 0."""
UNIT = 6
"""Blocks of a unit: one of image tokens, four of semantic tokens, one that recovers the former."""
GENERATION_WINDOWS = 2, 3
"""Sides, in windows, of the squares that the backbone generates semantic tokens from."""
RECOVERY_WINDOWS = 9
"""Side, in windows, of the square of semantic tokens that the backbone recovers a window from."""

_NORM_COST = 5  # of each normalised value, as fvcore counts


def key_side(config: ModelConfig) -> int:
    """Side of the square of image tokens that a window of the classifier first attends to.

    It is 10 for windows of 7 and 3 semantic tokens, as published.
    """
    section = swin_section(config)
    return section.window + section.semantic_side


def _check(config: ModelConfig) -> None:
    check_swin(config)
    section = swin_section(config)
    section.semantic_side  # noqa: B018 - checks itself
    depth = section.depths[SEMANTIC_STAGE]
    wanted = f"a multiple of {UNIT} in the third stage: that many blocks make a unit"
    check_field(depth % UNIT == 0, "depths", section.depths, wanted)
    check_field(
        config.embed_dim % 2 == 0, "embed_dim", config.embed_dim, "even: the stem halves it"
    )


def _macs(config: ModelConfig, counted: Counted) -> dict[Role, int]:
    """Multiply-accumulates; see `graph_macs`.

    As its authors count, the classifier projects the keys of each window, and every normalised
    value costs 5; the backbone projects keys once, and also those that pad windows.
    """
    stages = swin_stages(config)
    blocks = dense_blocks_macs(config, counted)
    units = stages[SEMANTIC_STAGE].depth // UNIT
    blocks[SEMANTIC_STAGE] = units * _unit_macs(config, stages[SEMANTIC_STAGE], counted)
    stem = _stem_macs(config)
    if counted == "papers" and swin_section(config).task == "classes":
        stem += _NORM_COST * normalised_values(config)
    return {role: stem + macs for role, macs in network_macs(config, blocks).items()}


class _Attended(NamedTuple):
    """Tokens of one block: projected queries, projected keys, pairs, and joined heads."""

    queries: int
    keys: int
    pairs: int
    joined: int


def _attended(config: ModelConfig, stage: Stage, counted: Counted) -> list[_Attended]:
    """The five blocks with semantic tokens of one unit; the last one updates image tokens."""
    section = swin_section(config)
    window, side = section.window, section.semantic_side
    windows, image, papers = stage.num_windows(window), stage.tokens, counted == "papers"
    semantic = windows * side**2
    local = _Attended(semantic, semantic, semantic * side**2, semantic)
    joint = _Attended(semantic, semantic, semantic**2, semantic)
    if section.task == "features":
        padded = windows * window**2
        keys, row, dropped = (padded, 0, padded) if papers else (image + 1, 1, image)
        first, second = (
            _Attended(semantic, keys, semantic * (count * window) ** 2, semantic)
            for count in GENERATION_WINDOWS
        )
        around = (RECOVERY_WINDOWS * side) ** 2
        recovery = _Attended(dropped, semantic + row, padded * around, dropped)
        return [first, second, local, joint, recovery]
    around = side**2 + math.prod(min(key_side(config), length) for length in stage.grid)
    keys = windows * around if papers else semantic + image
    first = _Attended(semantic, keys, semantic * around, semantic)
    second = _Attended(semantic, semantic + image, semantic * (semantic + image), semantic)
    recovery = _Attended(image, semantic, image * semantic, image)
    return [first, second, local, joint, recovery]


def _unit_macs(config: ModelConfig, stage: Stage, counted: Counted) -> int:
    width, blocks = stage.width, _attended(config, stage, counted)
    total = window_block_macs(config, stage, counted)
    for block in blocks:
        projected = block.queries + 2 * block.keys + block.joined
        total += projected * width**2 + 2 * block.pairs * width
    updated = sum(block.queries for block in blocks[:-1]) + stage.tokens
    return total + updated * block_mlp_macs(config, width)


def _stem_macs(config: ModelConfig) -> int:
    half = config.embed_dim // 2
    pixels = 4 * config.num_fine_tokens  # after the first convolution
    return pixels * 9 * 3 * half + config.num_fine_tokens * 9 * half * config.embed_dim


def normalised_values(config: ModelConfig) -> int:
    """Values that BatchNorm and LayerNorm give in the classifier as published."""
    stages = swin_stages(config)
    # The stem has two convolutions: four times the tokens in half the width, then all of it.
    total = 3 * config.num_fine_tokens * config.embed_dim
    for number, stage in enumerate(stages):
        total += 2 * stage.depth * stage.tokens * stage.width
        if number:
            total += 2 * stage.tokens * stage.width  # of the merging: twice its result
    stage = stages[SEMANTIC_STAGE]
    units = stage.depth // UNIT
    first, second, local, joint, recovery = _attended(config, stage, "papers")
    semantic = 2 * (first.queries + second.queries + local.queries + joint.queries)
    normed = semantic + first.keys + second.keys + recovery.keys + 2 * recovery.queries
    total += units * (normed - 2 * (UNIT - 1) * stage.tokens) * stage.width
    return total + stages[-1].tokens * stages[-1].width


def _stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return swin_shapes(config) | {"patch_embed.proj.0.c.weight": (config.embed_dim // 2, 3, 3, 3)}


STVIT_R = dataclasses.replace(
    SWIN,
    name="stvit_r",
    title="STViT-R",
    presets=all_swin_presets("stvit_r_swin", sample_window=3)
    | swin_demo_preset("stvit_r_swin", sample_window=2),
    check=_check,
    macs=_macs,
    model="sacvit_deploy.model.stvit_r:SemanticSwin",
    stored_shapes=_stored_shapes,
)
