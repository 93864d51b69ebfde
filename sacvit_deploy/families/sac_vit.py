"""SAC-ViT: targets and other tokens attend in clusters of their own.

Hu et al., "SAC-ViT: Semantic-Aware Clustering Vision Transformer with Early Exit". No checkpoint
of it is published; those of its sibling CF-ViT show the layout to expect.
"""

from __future__ import annotations

from sacvit_deploy.families.family import Family
from sacvit_deploy.families.two_stage import (
    PUBLISHED_NAMES,
    TWO_STAGE_MODEL,
    TWO_STAGE_VIEW,
    TwoStageConfig,
    check_two_stage,
    two_stage_layers,
    two_stage_macs,
    two_stage_presets,
    two_stage_tensors,
)

_STAGES = TwoStageConfig()

SAC_VIT = Family(
    name="sac_vit",
    title="SAC-ViT",
    presets=two_stage_presets("sac_", _STAGES),
    files={"early_exit": "ee.onnx", "refine": "sac.onnx"},
    check=check_two_stage,
    tensors=two_stage_tensors,
    macs=two_stage_macs,
    layers=two_stage_layers,
    model=TWO_STAGE_MODEL,
    view=TWO_STAGE_VIEW,
    checkpoint_names=PUBLISHED_NAMES,
)
