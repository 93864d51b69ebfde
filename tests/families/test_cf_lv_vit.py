from __future__ import annotations

import pytest

from sacvit_deploy.families.cf_lv_vit import CF_LV_VIT
from sacvit_deploy.families.config import graph_macs, graph_specs, preset
from sacvit_deploy.families.vit import mlp_macs


@pytest.mark.parametrize("name", CF_LV_VIT.presets)
def test_presets_are_cf_vit_on_the_body_of_lv_vit(name):
    config = preset(name)
    assert (config.stages.attention, config.stages.exit_comparison) == ("joint", ">=")
    assert (config.stem, config.qkv_bias, config.residual_scale) == ("conv", False, 0.5)
    assert (config.layer_norm_eps, config.aux_weight) == (1e-5, 0.25)
    assert [graph.file for graph in graph_specs(config)] == ["coarse.onnx", "fine.onnx"]


def test_cost_of_the_paper():
    """Table 2: 6.1 with both stages. The published code projects every coarse token."""
    config = preset("cf_lv_vit_small_224")
    assert (config.num_coarse_tokens, config.num_targets, config.depth) == (49, 25, 16)
    early_exit, refine = graph_macs(config).values()
    theirs = refine + (49 - 25) * mlp_macs(config)
    assert (round(early_exit / 1e9, 2), round(theirs / 1e9, 2)) == (1.57, 4.58)


def test_the_grid_of_the_larger_picture():
    config = preset("cf_lv_vit_small_288")
    assert (config.num_coarse_tokens, config.num_targets) == (81, 41)
