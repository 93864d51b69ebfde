"""LV-ViT: a ViT with a convolutional stem and a second head on the patches.

Jiang et al., "All Tokens Matter: Token Labeling for Training Better Vision Transformers" (NeurIPS
2021). The dense network is the baseline of CF-ViT on the same body.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sacvit_deploy.families.vit import VIT, demo_preset

_SIDES = (224, 288)
_LV = {
    "layer_norm_eps": 1e-5,
    "stem": "conv",
    "qkv_bias": False,
    "residual_scale": 0.5,
}
_SMALL = {"patch_size": 16, "embed_dim": 384, "depth": 16, "num_heads": 6, "mlp_ratio": 3.0}


def lv_presets(prefix: str, aux_weight: float) -> dict[str, dict[str, Any]]:
    """Fields of `ModelConfig` for LV-ViT-S, by preset.

    Args:
        prefix: Start of the names.
        aux_weight: Weight of the head on the patches.
    """
    body = {**_SMALL, **_LV, "aux_weight": aux_weight}
    return {f"{prefix}lv_vit_small_{s}": {"image_size": (s, s), **body} for s in _SIDES}


def lv_demo_preset(prefix: str, aux_weight: float) -> dict[str, dict[str, Any]]:
    """Fields of `ModelConfig` for the demo's body with LV-ViT's stem and heads, by preset."""
    (body,) = demo_preset("").values()
    return {f"{prefix}lv_demo_patch8_64": {**body, **_LV, "aux_weight": aux_weight}}


LV_VIT = dataclasses.replace(
    VIT, name="lv_vit", title="LV-ViT", presets=lv_presets("", 0.5) | lv_demo_preset("", 0.5)
)
