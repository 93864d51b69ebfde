"""What a picture costs, in multiply-accumulates.

Counted as the papers count their "FLOPs": linear layers, the two products of every attention, the
patch embedding, and the fusion of the second stage. Softmax, norms, GELU and additions are left
out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sacvit_deploy.spec import ModelConfig, Role

Attention = Literal["needed", "masked"]

_GIGA = 1e9


def graph_macs(config: ModelConfig, attention: Attention = "needed") -> dict[Role, int]:
    """Multiply-accumulates of each graph for one picture.

    Args:
        config: The network.
        attention: Of clustered attention, `needed` counts the pairs of tokens that may see each
            other, as the papers do. `masked` counts all pairs, which is what an exported graph
            computes before it masks: 1.6 % more of the second stage of SAC-ViT (DeiT-S, 224 px).
            Both are the same where attention is joint.

    Returns:
        `early_exit` and `refine`, or `single`.
    """
    if config.two_stage is None:
        return {"single": dense_macs(config)}
    return {"early_exit": _early_exit(config), "refine": _refine(config, attention)}


def dense_macs(config: ModelConfig) -> int:
    """Multiply-accumulates of the dense network of the same body on the whole picture."""
    tokens = config.num_fine_tokens
    return _body(config, tokens + 1, (tokens + 1) ** 2) + _patches(config, tokens)


def mean_macs_g(config: ModelConfig, refine_fraction: float) -> float:
    """Mean cost of a picture, in 1e9 multiply-accumulates.

    Args:
        config: The network.
        refine_fraction: Share of the pictures that go on to the second stage, in [0, 1]; has no
            effect on a network of one stage.
    """
    macs = graph_macs(config)
    if config.two_stage is None:
        return macs["single"] / _GIGA
    return (macs["early_exit"] + refine_fraction * macs["refine"]) / _GIGA


def _early_exit(config: ModelConfig) -> int:
    tokens = config.num_coarse_tokens
    length = tokens + 1
    # Eq. 10 takes one more row of the scores in each block from the first that counts.
    class_rows = (config.depth - config.stages.score_first_block) * length * config.embed_dim
    return _body(config, length, length**2) + _patches(config, tokens) + class_rows


def _refine(config: ModelConfig, attention: Attention) -> int:
    targets = config.num_targets
    others = config.num_coarse_tokens - targets
    length = 1 + 4 * targets + others
    pairs = _pairs(config, 4 * targets, others, attention)
    # Every patch of the picture is embedded, and the targets are taken from among them.
    patches = _patches(config, config.num_fine_tokens)
    return _body(config, length, pairs) + patches + targets * _mlp(config)


def _pairs(config: ModelConfig, targets: int, others: int, attention: Attention) -> int:
    """Query and key tokens that meet in the second stage."""
    length = 1 + targets + others
    twice = config.stages.cls_update == "mean"
    if config.stages.attention == "joint":
        return length**2
    if attention == "masked":
        return (length + twice) * length
    class_token = length + 1 if twice else length
    return class_token + targets * (targets + 1) + others * (others + 1)


def _body(config: ModelConfig, length: int, pairs: int) -> int:
    """Blocks and head for a sequence of `length` tokens, `pairs` of which meet in attention."""
    width = config.embed_dim
    linear = length * (4 * width * width + _mlp(config))
    return config.depth * (linear + 2 * pairs * width) + width * config.num_classes


def _mlp(config: ModelConfig) -> int:
    """Of one token."""
    return 2 * config.embed_dim * round(config.embed_dim * config.mlp_ratio)


def _patches(config: ModelConfig, count: int) -> int:
    return count * 3 * config.patch_size**2 * config.embed_dim
