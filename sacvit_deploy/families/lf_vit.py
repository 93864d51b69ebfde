"""LF-ViT: the targets lie inside one window, the most attended of the picture.

Hu et al., "LF-ViT: Reducing Spatial Redundancy in Vision Transformer for Efficient Image
Recognition" (AAAI 2024). Everything else is CF-ViT's.
"""

from __future__ import annotations

from dataclasses import replace

from sacvit_deploy.families.cf_vit import STAGES
from sacvit_deploy.families.two_stage import two_stage_family, with_stages
from sacvit_deploy.families.vit import deit_presets, demo_preset

_STAGES = replace(STAGES, alpha=0.88, window=5)
# Windows of 5 x 5 in 7 x 7 coarse tokens and 8 x 8 in 9 x 9, as published.
_WINDOWS = {224: 5, 288: 8}

LF_VIT = two_stage_family(
    name="lf_vit",
    title="LF-ViT",
    presets={
        key: {**body, "two_stage": replace(_STAGES, window=_WINDOWS[body["image_size"][0]])}
        for key, body in deit_presets("lf_").items()
    }
    | with_stages(demo_preset("lf_"), replace(_STAGES, window=3, score_first_block=2)),
    files={"early_exit": "location.onnx", "refine": "focus.onnx"},
)
