from __future__ import annotations

import pytest

from sacvit_deploy.families.cf_vit import CF_VIT
from sacvit_deploy.families.config import graph_macs, graph_specs, preset
from sacvit_deploy.families.vit import mlp_macs


@pytest.mark.parametrize("name", CF_VIT.presets)
def test_presets_are_those_of_the_paper(name):
    stages = preset(name).stages
    assert (stages.attention, stages.exit_comparison) == ("joint", ">=")
    assert [graph.file for graph in graph_specs(preset(name))] == ["coarse.onnx", "fine.onnx"]


@pytest.mark.parametrize(
    ("name", "tokens", "targets"),
    [
        ("cf_deit_tiny_patch16_224", 49, 25),
        ("cf_deit_small_patch16_224", 49, 25),
        ("cf_deit_small_patch16_288", 81, 41),
        ("cf_deit_base_patch16_224", 49, 25),
    ],
)
def test_targets_of_the_paper(name, tokens, targets):
    config = preset(name)
    assert (config.num_coarse_tokens, config.num_targets) == (tokens, targets)
    assert config.num_fine_tokens == 4 * tokens


@pytest.mark.parametrize(
    ("alpha", "published"),
    [(0.4, 3.66), (0.5, 4.01), (0.6, 4.37), (0.7, 4.73), (0.8, 5.09), (0.9, 5.46)],
)
def test_cost_at_every_alpha_of_the_paper(alpha, published):
    """Table 6: both stages. The published code projects every coarse token, ours the targets."""
    config = preset("cf_deit_small_patch16_224").replace(alpha=alpha)
    others = config.num_coarse_tokens - config.num_targets
    theirs = sum(graph_macs(config).values()) + others * mlp_macs(config)
    assert round(theirs / 1e9, 2) == published


def test_joint_attention_hides_nothing():
    joint = preset("cf_deit_small_patch16_224")
    assert graph_macs(joint, "needed") == graph_macs(joint, "graph")
