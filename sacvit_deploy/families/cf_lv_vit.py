"""CF-ViT on the body of LV-ViT.

Chen et al., "CF-ViT: A General Coarse-to-Fine Method for Vision Transformer" (AAAI 2023), section
"Results on LV-ViT".
"""

from __future__ import annotations

import dataclasses

from sacvit_deploy.families.cf_vit import CF_VIT, STAGES
from sacvit_deploy.families.lv_vit import lv_demo_preset, lv_presets
from sacvit_deploy.families.two_stage import with_stages

_AUX_WEIGHT = 0.25

CF_LV_VIT = dataclasses.replace(
    CF_VIT,
    name="cf_lv_vit",
    title="CF-ViT on LV-ViT",
    presets=with_stages(lv_presets("cf_", _AUX_WEIGHT), STAGES)
    | with_stages(
        lv_demo_preset("cf_", _AUX_WEIGHT), dataclasses.replace(STAGES, score_first_block=2)
    ),
)
