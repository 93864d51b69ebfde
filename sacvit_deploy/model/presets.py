"""Named model configurations, so that a command line can say which network it means."""

from __future__ import annotations

import dataclasses

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.spec import Family, ModelConfig, Preprocessing, TwoStageConfig

# DeiT bodies (Touvron et al. 2021, table 1): embed_dim, depth, num_heads.
_BODIES = {
    "deit_tiny": (192, 12, 3),
    "deit_small": (384, 12, 6),
    "deit_base": (768, 12, 12),
}
_SIZES = {"deit_tiny": (224,), "deit_small": (224, 288), "deit_base": (224,)}
_PREFIXES: dict[str, Family] = {"": "vit", "sac_": "sac_vit", "cf_": "cf_vit"}
_STAGES = {
    "vit": None,
    "sac_vit": TwoStageConfig(),
    "cf_vit": TwoStageConfig(target_rounding="ceil", exit_comparison=">=", attention="joint"),
}


def _all_presets() -> dict[str, ModelConfig]:
    presets = {}
    for prefix, family in _PREFIXES.items():
        for body, (width, depth, heads) in _BODIES.items():
            for side in _SIZES[body]:
                presets[f"{prefix}{body}_patch16_{side}"] = ModelConfig(
                    family, (side, side), 16, width, depth, heads, two_stage=_STAGES[family]
                )
        presets[f"{prefix}demo_patch8_64"] = _demo(family)
    return presets


def _demo(family: Family) -> ModelConfig:
    """64 px pictures in 50 classes: the network that ships, small enough to train on a desktop."""
    stages = _STAGES[family]
    if stages is not None:
        # Of five blocks, the last three: the share of DeiT's that counts.
        stages = dataclasses.replace(stages, score_first_block=2)
    return ModelConfig(
        family, (64, 64), 8, 384, 5, 6, num_classes=50, mlp_ratio=2.0, two_stage=stages
    )


PRESETS = _all_presets()


def preset(name: str) -> ModelConfig:
    """The configuration of that name.

    Raises:
        ConfigError: There is none.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(
            f"There is no preset {name!r}.", f"Choose one of: {', '.join(sorted(PRESETS))}."
        ) from None


def preset_preprocessing(config: ModelConfig) -> Preprocessing:
    """DeiT's evaluation transform for photographs; small pictures are taken whole."""
    return Preprocessing(
        config.image_size, crop_ratio=0.875 if min(config.image_size) > 64 else 1.0
    )
