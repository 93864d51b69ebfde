"""The named configurations and what they amount to."""

from __future__ import annotations

import itertools

import pytest
import torch

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import PRESETS, preset, preset_preprocessing
from sacvit_deploy.model.build import build_model

BODIES = (
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "deit_small_patch16_288",
    "deit_base_patch16_224",
)


def test_every_promised_preset_is_there():
    promised = {prefix + body for prefix, body in itertools.product(("sac_", "cf_", ""), BODIES)}
    assert promised <= set(PRESETS)


@pytest.mark.parametrize(
    ("name", "tokens", "targets"),
    [
        ("sac_deit_tiny_patch16_224", 49, 24),
        ("sac_deit_small_patch16_224", 49, 24),
        ("sac_deit_small_patch16_288", 81, 40),
        ("sac_deit_base_patch16_224", 49, 24),
        ("cf_deit_tiny_patch16_224", 49, 25),
        ("cf_deit_small_patch16_224", 49, 25),
        ("cf_deit_small_patch16_288", 81, 41),
        ("cf_deit_base_patch16_224", 49, 25),
    ],
)
def test_targets_of_the_papers(name, tokens, targets):
    config = preset(name)
    assert (config.num_coarse_tokens, config.num_targets) == (tokens, targets)
    assert config.num_fine_tokens == 4 * tokens


# Millions of parameters as DeiT's paper has them (table 1).
@pytest.mark.parametrize(
    ("name", "millions"),
    [("deit_tiny_patch16_224", 5.7), ("deit_small_patch16_224", 22.1)],
)
def test_size_of_the_dense_baselines(name, millions):
    with torch.device("meta"):
        model = build_model(preset(name))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_family_follows_the_prefix(name):
    config = preset(name)
    family = {"sac": "sac_vit", "cf": "cf_vit"}.get(name.partition("_")[0], "vit")
    assert config.family == family
    assert (config.two_stage is None) == (family == "vit")
    if family != "vit":
        sac = family == "sac_vit"
        assert config.stages.attention == ("clustered" if sac else "joint")
        assert config.stages.exit_comparison == (">" if sac else ">=")
    assert preset_preprocessing(config).crop == config.image_size


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"no preset 'resnet50'(.|\n)*sac_deit_small_patch16_224"):
        preset("resnet50")
