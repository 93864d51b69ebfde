"""Two-stage families: configuration, graphs and cost.

A two-stage network classifies a half-size picture first. If its confidence is low, it refines the
most attended tokens, its targets, in full resolution and reuses the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sacvit_deploy.decode import check_field, check_types
from sacvit_deploy.families.family import Family
from sacvit_deploy.families.vit import (
    body_macs,
    body_shapes,
    check_image_size,
    deit_presets,
    demo_preset,
    image_spec,
    logits_spec,
    mlp_macs,
    patch_macs,
    table_shapes,
    unread_macs,
)
from sacvit_deploy.spec import (
    BATCH,
    COARSE_EMBEDDINGS,
    COARSE_FEATURES,
    FINE_INDEX,
    NON_TARGET_INDEX,
    SCORE,
    TARGET_INDEX,
    InputKind,
    Role,
    Selection,
    TensorSpec,
)

if TYPE_CHECKING:
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.families.family import Counted, Tensors


# alpha * N is meant in the reals: .88 * 25 must be 22, whatever the last bit of the product.
_COUNT_SLACK = 1e-9

_PUBLISHED_NAMES = {
    "pos_embed_list.0": "pos_embed_coarse",
    "pos_embed_list.1": "pos_embed_fine",
    "reuse_block.0.": "fusion.norm.",
    "reuse_block.1.": "fusion.mlp.",
}
"""Prefixes of tensor names here, by those in the checkpoints of CF-ViT and LF-ViT."""


@dataclass(frozen=True)
class TwoStageConfig:
    """Configuration of the two stages.

    Attributes:
        alpha: Share of coarse tokens refined in full resolution, in (0, 1); with a window, share
            of the tokens in it.
        target_rounding: M = floor(alpha N) in SAC-ViT, ceil(alpha N) in the others.
        exit_comparison: Early exit when the largest softmax probability is `>` (SAC-ViT) or `>=`
            (the others) the threshold eta.
        attention: `clustered` restricts targets to targets and non-targets to non-targets
            (SAC-ViT); `joint` lets every token attend to every other (the others).
        cls_update: Update of the class token, which belongs to both clusters: `joint` lets its
            query attend to all tokens; `mean` averages its updates from each cluster.
        score_first_block: First 0-based block whose class attention counts in Eq. 10.
        score_beta: Weight of the past in the moving average of Eq. 10, in [0, 1).
        score_start: Value of the moving average before the first block: `zero`, or the `first`
            class attention itself.
        non_target_source: Tokens reused for non-targets: the patch `embedding` with coarse
            positions as it entered block 0, or the `final` normalised token.
        position_tables: 2 learned tables (coarse, fine), or 1 fine table from which the coarse
            one is interpolated.
        window: Rows and columns of the window of coarse tokens that holds all targets (LF-ViT);
            None lets them lie anywhere.

    Raises:
        ConfigError: A value is of another type or out of range.
    """

    alpha: float = 0.5
    target_rounding: Literal["floor", "ceil"] = "floor"
    exit_comparison: Literal[">", ">="] = ">"
    attention: Literal["clustered", "joint"] = "clustered"
    cls_update: Literal["joint", "mean"] = "joint"
    score_first_block: int = 3
    score_beta: float = 0.99
    score_start: Literal["zero", "first"] = "zero"
    non_target_source: Literal["embedding", "final"] = "embedding"
    position_tables: Literal[1, 2] = 2
    window: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_field(
            0 < self.alpha < 1, "alpha", self.alpha, "a number between 0 and 1, both excluded"
        )
        check_field(0 <= self.score_beta < 1, "score_beta", self.score_beta, "a number in [0, 1)")
        check_field(
            self.score_first_block >= 0, "score_first_block", self.score_first_block, "0 or more"
        )

    def num_targets(self, num_coarse_tokens: int) -> int:
        """M, of N coarse tokens."""
        product = self.alpha * (num_coarse_tokens if self.window is None else self.window**2)
        if self.target_rounding == "floor":
            return math.floor(product + _COUNT_SLACK)
        return math.ceil(product - _COUNT_SLACK)


def with_stages(
    bodies: Mapping[str, Mapping[str, Any]], stages: TwoStageConfig
) -> dict[str, dict[str, Any]]:
    """Presets of two stages, from the fields of their bodies."""
    return {key: {**body, "two_stage": stages} for key, body in bodies.items()}


def on_deit(prefix: str, stages: TwoStageConfig) -> dict[str, dict[str, Any]]:
    """Presets of two stages on every DeiT body and on the demo's, by name."""
    # The last three of the demo's five blocks: about the share of DeiT's blocks that counts.
    demo = dataclasses.replace(stages, score_first_block=2)
    return with_stages(deit_presets(prefix), stages) | with_stages(demo_preset(prefix), demo)


def two_stage_family(
    name: str,
    title: str,
    presets: Mapping[str, Mapping[str, Any]],
    files: Mapping[Role, str],
) -> Family:
    """Describe a family that its configuration alone sets apart.

    Args:
        name: Name in configurations and bundles.
        title: Name in its paper.
        presets: Fields of `ModelConfig` without the family, by preset.
        files: File name of each graph.
    """
    return Family(
        name=name,
        title=title,
        presets=presets,
        files=files,
        section="two_stage",
        check=_check,
        tensors=_tensors,
        macs=_macs,
        model="sacvit_deploy.model.two_stage:TwoStageViT",
        view="sacvit_deploy.model.views:two_stage_view",
        layout="sacvit_deploy.model.layouts:two_stage_layout",
        checkpoint_names=_PUBLISHED_NAMES,
        stored_shapes=_stored_shapes,
        chooses="target tokens",
    )


def _check(config: ModelConfig) -> None:
    """Raise `ConfigError` if the stages do not fit the body."""
    stages = config.stages
    check_image_size(config, 2 * config.patch_size, "twice the")
    first = stages.score_first_block
    wanted = f"a block of this network, 0 to {config.depth - 1}"
    check_field(first < config.depth, "score_first_block", first, wanted)
    if stages.window is not None:
        most = min(config.coarse_grid)
        wanted = f"null, or a number from 1 to {most}, the shorter side of the coarse grid"
        check_field(1 <= stages.window <= most, "window", stages.window, wanted)
    tokens = config.num_coarse_tokens
    wanted = f"such that at least one and not all of the {tokens} coarse tokens are targets"
    check_field(1 <= config.num_targets < tokens, "alpha", stages.alpha, wanted)


def _tensors(
    config: ModelConfig, selection: Selection, input_kind: InputKind
) -> dict[Role, tuple[Tensors, Tensors]]:
    """Inputs and outputs of both graphs.

    The refine graph takes the survivors' rows of every tensor. With `selection="host"` it takes the
    indices that the host chose. With `"graph"` it takes the scores and chooses the targets itself.
    """
    image = image_spec(config, input_kind)
    handed = _hand_off(config)
    early_exit = (image,), (logits_spec(config), *handed)
    targets, tokens = config.num_targets, config.num_coarse_tokens
    if selection == "graph":
        chosen = TensorSpec(TARGET_INDEX, "int64", (BATCH, targets))
        refine: tuple[Tensors, Tensors] = (image, *handed), (logits_spec(config), chosen)
        return {"early_exit": early_exit, "refine": refine}
    indices = (
        TensorSpec(TARGET_INDEX, "int64", (BATCH, targets)),
        TensorSpec(NON_TARGET_INDEX, "int64", (BATCH, tokens - targets)),
        TensorSpec(FINE_INDEX, "int64", (BATCH, 4 * targets)),
    )
    without_score = (tensor for tensor in handed if tensor.name != SCORE)
    refine = (image, *without_score, *indices), (logits_spec(config),)
    return {"early_exit": early_exit, "refine": refine}


def _macs(config: ModelConfig, counted: Counted) -> dict[Role, int]:
    """Multiply-accumulates of both graphs; see `graph_macs`."""
    return {"early_exit": _early_exit_macs(config), "refine": _refine_macs(config, counted)}


def _stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return body_shapes(config) | table_shapes(config, "pos_embed_fine")


def _hand_off(config: ModelConfig) -> Tensors:
    """Tensors from the first stage to the second; embeddings only if they are reused."""
    tokens, width = config.num_coarse_tokens, config.embed_dim
    tensors = [TensorSpec(SCORE, "float32", (BATCH, tokens))]
    if config.stages.non_target_source == "embedding":
        tensors.append(TensorSpec(COARSE_EMBEDDINGS, "float32", (BATCH, tokens, width)))
    tensors.append(TensorSpec(COARSE_FEATURES, "float32", (BATCH, tokens, width)))
    return tuple(tensors)


def _early_exit_macs(config: ModelConfig) -> int:
    tokens = config.num_coarse_tokens
    length = tokens + 1
    # Eq. 10 takes one more row of the scores in each block from the first that counts.
    class_rows = (config.depth - config.stages.score_first_block) * length * config.embed_dim
    return body_macs(config, length, length**2) + patch_macs(config, tokens) + class_rows


def _refine_macs(config: ModelConfig, counted: Counted) -> int:
    targets = config.num_targets
    others = config.num_coarse_tokens - targets
    length = 1 + 4 * targets + others
    size = length, _pairs(config, 4 * targets, others, masked=counted == "graph")
    unread = 0 if counted == "papers" else unread_macs(config, *size)
    # Every patch of the picture is embedded, and the targets are picked from them.
    patches = patch_macs(config, config.num_fine_tokens)
    return body_macs(config, *size) - unread + patches + targets * mlp_macs(config)


def _pairs(config: ModelConfig, targets: int, others: int, *, masked: bool) -> int:
    """Pairs of query and key in the second stage: all if they are masked."""
    length = 1 + targets + others
    twice = config.stages.cls_update == "mean"
    if config.stages.attention == "joint":
        return length**2
    if masked:
        return (length + twice) * length
    class_token = length + 1 if twice else length
    return class_token + targets * (targets + 1) + others * (others + 1)
