"""CF-ViT: all tokens of the second stage attend jointly.

Chen et al., "CF-ViT: A General Coarse-to-Fine Method for Vision Transformer" (AAAI 2023).
"""

from __future__ import annotations

from sacvit_deploy.families.two_stage import TwoStageConfig, two_stage_family

CF_VIT = two_stage_family(
    name="cf_vit",
    title="CF-ViT",
    prefix="cf_",
    stages=TwoStageConfig(target_rounding="ceil", exit_comparison=">=", attention="joint"),
    files={"early_exit": "coarse.onnx", "refine": "fine.onnx"},
)
