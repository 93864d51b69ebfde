"""What the tests of the networks share: small configurations."""

from __future__ import annotations

import pytest

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.two_stage import TwoStageConfig


@pytest.fixture
def tiny() -> ModelConfig:
    """SAC-ViT with an 8x8 fine and a 4x4 coarse grid and 4 blocks."""
    stages = TwoStageConfig(score_first_block=1)
    return ModelConfig("sac_vit", (32, 32), 4, 24, 4, 3, num_classes=5, two_stage=stages)


@pytest.fixture
def tiny_dense() -> ModelConfig:
    return ModelConfig("vit", (32, 32), 4, 24, 4, 3, num_classes=5)
