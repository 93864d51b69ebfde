"""CF-ViT: all tokens of the second stage attend jointly.

Chen et al., "CF-ViT: A General Coarse-to-Fine Method for Vision Transformer" (AAAI 2023).
"""

from __future__ import annotations

from sacvit_deploy.families.two_stage import TwoStageConfig, on_deit, two_stage_family

STAGES = TwoStageConfig(target_rounding="ceil", exit_comparison=">=", attention="joint")

CF_VIT = two_stage_family(
    name="cf_vit",
    title="CF-ViT",
    presets=on_deit("cf_", STAGES),
    files={"early_exit": "coarse.onnx", "refine": "fine.onnx"},
)
