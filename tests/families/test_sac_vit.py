from __future__ import annotations

import pytest

from sacvit_deploy.families.config import graph_macs, graph_specs, mean_macs_g, preset
from sacvit_deploy.families.sac_vit import SAC_VIT

SMALL_224 = preset("sac_deit_small_patch16_224")


@pytest.mark.parametrize("name", SAC_VIT.presets)
def test_presets_are_those_of_the_paper(name):
    stages = preset(name).stages
    assert (stages.attention, stages.exit_comparison) == ("clustered", ">")
    assert [graph.file for graph in graph_specs(preset(name))] == ["ee.onnx", "sac.onnx"]


@pytest.mark.parametrize(
    ("name", "tokens", "targets"),
    [
        ("sac_deit_tiny_patch16_224", 49, 24),
        ("sac_deit_small_patch16_224", 49, 24),
        ("sac_deit_small_patch16_288", 81, 40),
        ("sac_deit_base_patch16_224", 49, 24),
    ],
)
def test_targets_of_the_paper(name, tokens, targets):
    config = preset(name)
    assert (config.num_coarse_tokens, config.num_targets) == (tokens, targets)
    assert config.num_fine_tokens == 4 * tokens


@pytest.mark.parametrize(
    ("name", "role", "paper_g"),
    [
        ("sac_deit_small_patch16_224", "early_exit", 1.10),
        ("sac_deit_small_patch16_224", "refine", 2.77),  # 2.74 and .03 of fusion
        ("sac_deit_small_patch16_288", "early_exit", 1.83),
        ("sac_deit_small_patch16_288", "refine", 4.69),
    ],
)
def test_the_figures_of_the_paper(name, role, paper_g):
    assert graph_macs(preset(name))[role] / 1e9 == pytest.approx(paper_g, abs=0.005)


def test_the_mean_of_the_paper():
    """SAC-ViT, table 3: 1.75 G are 23.5 % of pictures in the second stage, 3.87 G all of them."""
    assert mean_macs_g(SMALL_224, 0.235) == pytest.approx(1.75, abs=0.005)
    assert mean_macs_g(SMALL_224, 1) == pytest.approx(3.87, abs=0.005)
    assert mean_macs_g(SMALL_224, 0) == graph_macs(SMALL_224)["early_exit"] / 1e9


def test_what_the_mask_hides_is_not_needed():
    needed, computed = (graph_macs(SMALL_224, counted) for counted in ("needed", "graph"))
    assert needed["early_exit"] == computed["early_exit"] == graph_macs(SMALL_224)["early_exit"]
    assert computed["refine"] / needed["refine"] == pytest.approx(1.016, abs=0.0005)


def test_the_last_block_of_the_second_stage_answers_for_the_class_token_alone():
    saved = graph_macs(SMALL_224)["refine"] - graph_macs(SMALL_224, "needed")["refine"]
    # Output projection and MLP of 121 tokens (1 + 96 + 25, but for the class token), and attention.
    pairs = 96 * 97 + 25 * 26
    assert saved == 121 * 9 * 384**2 + 2 * pairs * 384
