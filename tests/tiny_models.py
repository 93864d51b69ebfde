"""Networks small enough to export in seconds, with weights strong enough that a mistake shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sacvit_deploy.families.config import ModelConfig, preset
from sacvit_deploy.families.stvit import SemanticConfig
from sacvit_deploy.families.svit import GateConfig
from sacvit_deploy.families.svit_adapter import AdapterConfig
from sacvit_deploy.families.two_stage import TwoStageConfig
from sacvit_deploy.model.build import random_model
from sacvit_deploy.model.gating import Gate
from sacvit_deploy.model.svit import SelectiveViT
from sacvit_deploy.model.svit_adapter import SelectiveAdapter
from sacvit_deploy.model.two_stage import TwoStageViT

if TYPE_CHECKING:
    from sacvit_deploy.model.vision_model import VisionModel

# Rows and columns differ, so that one taken for the other shows.
SAC = ModelConfig(
    "sac_vit",
    (32, 48),
    4,
    24,
    3,
    3,
    num_classes=7,
    two_stage=TwoStageConfig(score_first_block=1),
)
OTHER_CHOICES = SAC.replace(cls_update="mean", non_target_source="final", score_start="first")
WINDOWED = SAC.replace(
    family="lf_vit", target_rounding="ceil", exit_comparison=">=", attention="joint", window=3
)
_LV = {"stem": "conv", "qkv_bias": False, "residual_scale": 0.5, "layer_norm_eps": 1e-5}
CF_LV = SAC.replace(
    family="cf_lv_vit",
    target_rounding="ceil",
    exit_comparison=">=",
    attention="joint",
    aux_weight=0.25,
    **_LV,
)
DENSE = ModelConfig("vit", (32, 48), 4, 24, 2, 3, num_classes=7)
DENSE_LV = DENSE.replace(family="lv_vit", aux_weight=0.5, **_LV)
SEMANTIC = ModelConfig(
    "stvit",
    (32, 48),
    4,
    24,
    4,
    3,
    num_classes=7,
    semantic=SemanticConfig(first_block=1, side=3),
)
GATED = DENSE.replace(family="svit", depth=3, layer_norm_eps=1e-5, gates=GateConfig(first_block=1))
ADAPTED = ModelConfig(
    "svit_adapter",
    (64, 96),
    16,
    24,
    4,
    3,
    layer_norm_eps=1e-5,
    adapter=AdapterConfig(
        first_block=1, interactions=2, deform_heads=3, num_points=2, prior_width=4
    ),
)
BACKBONE = preset("stvit_r_swin_demo_128").replace(
    image_size=(64, 96), embed_dim=12, depths=(1, 2, 6, 1), depth=10, task="features"
)
GOLDEN_CF = ModelConfig(
    "cf_vit",
    (224, 224),
    16,
    48,
    12,
    3,
    num_classes=16,
    two_stage=TwoStageConfig(target_rounding="ceil", exit_comparison=">=", attention="joint"),
)
GOLDEN_FILE = Path(__file__).parent / "golden" / "cfvit_small_7x7.npz"


def strong_model(config: ModelConfig, seed: int = 0) -> VisionModel:
    """Fresh weights give almost the same answer to everything; these do not."""
    model = random_model(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
            else:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def strong_two_stage(config: ModelConfig, seed: int = 0) -> TwoStageViT:
    """`strong_model` of a two-stage network."""
    model = strong_model(config, seed)
    assert isinstance(model, TwoStageViT)
    return model


@torch.no_grad()
def strong_gated(config: ModelConfig, seed: int = 0) -> SelectiveViT:
    """`strong_model` of a network with gates, which keep some half of the tokens."""
    model = strong_model(config, seed)
    assert isinstance(model, SelectiveViT)
    for _, gate in model.gated_blocks():
        gate.mlp.fc1.weight.mul_(4)
        gate.mlp.fc2.bias.zero_()
    return model


@torch.no_grad()
def strong_adapted(config: ModelConfig, seed: int = 0) -> SelectiveAdapter:
    """`strong_model` of a network with an adapter, whose gates keep some half of the tokens."""
    model = strong_model(config, seed)
    assert isinstance(model, SelectiveAdapter)
    for module in model.modules():
        if isinstance(module, Gate):
            module.mlp.fc1.weight.mul_(4)
            module.mlp.fc2.bias.zero_()
    return model
