"""SAC-ViT: targets and other tokens attend in clusters of their own.

Hu et al., "SAC-ViT: Semantic-Aware Clustering Vision Transformer with Early Exit". No checkpoint
of it is published; those of its sibling CF-ViT show the layout to expect.
"""

from __future__ import annotations

from sacvit_deploy.families.two_stage import TwoStageConfig, on_deit, two_stage_family

SAC_VIT = two_stage_family(
    name="sac_vit",
    title="SAC-ViT",
    presets=on_deit("sac_", TwoStageConfig()),
    files={"early_exit": "ee.onnx", "refine": "sac.onnx"},
)
