"""CF-ViT: all tokens of the second stage attend jointly.

Chen et al., "CF-ViT: A General Coarse-to-Fine Method for Vision Transformer" (AAAI 2023).
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

_STAGES = TwoStageConfig(target_rounding="ceil", exit_comparison=">=", attention="joint")

CF_VIT = Family(
    name="cf_vit",
    title="CF-ViT",
    presets=two_stage_presets("cf_", _STAGES),
    files={"early_exit": "coarse.onnx", "refine": "fine.onnx"},
    check=check_two_stage,
    tensors=two_stage_tensors,
    macs=two_stage_macs,
    layers=two_stage_layers,
    model=TWO_STAGE_MODEL,
    view=TWO_STAGE_VIEW,
    checkpoint_names=PUBLISHED_NAMES,
)
