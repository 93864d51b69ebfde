from __future__ import annotations

import pytest

from sacvit_deploy.families.cf_vit import CF_VIT
from sacvit_deploy.families.config import graph_macs, graph_specs, preset


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


def test_joint_attention_hides_nothing():
    joint = preset("cf_deit_small_patch16_224")
    assert graph_macs(joint, "needed") == graph_macs(joint, "masked")
