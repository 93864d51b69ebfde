from __future__ import annotations

import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import graph_macs, graph_specs, preset
from sacvit_deploy.families.lf_vit import LF_VIT
from sacvit_deploy.families.vit import mlp_macs


@pytest.mark.parametrize("name", LF_VIT.presets)
def test_presets_are_those_of_the_paper(name):
    stages = preset(name).stages
    assert (stages.attention, stages.exit_comparison) == ("joint", ">=")
    assert [graph.file for graph in graph_specs(preset(name))] == ["location.onnx", "focus.onnx"]


@pytest.mark.parametrize(
    ("side", "window", "targets", "published"),
    [(224, 5, 22, (1.10, 2.70)), (288, 8, 57, (1.83, 6.15))],
)
def test_window_targets_and_cost_of_the_paper(side, window, targets, published):
    config = preset(f"lf_deit_small_patch16_{side}")
    assert (config.stages.window, config.num_targets) == (window, targets)
    early_exit, refine = graph_macs(config).values()
    # The published code projects every coarse token for the reuse, ours the targets only.
    theirs = refine + (config.num_coarse_tokens - targets) * mlp_macs(config)
    assert (round(early_exit / 1e9, 2), round(theirs / 1e9, 2)) == published


@pytest.mark.parametrize("window", [0, 8])
def test_a_window_fits_into_the_grid(window):
    with pytest.raises(ConfigError, match="window"):
        preset("lf_deit_small_patch16_224").replace(window=window)


def test_a_window_may_be_as_large_as_the_grid():
    config = preset("lf_deit_small_patch16_224").replace(window=7)
    assert config.num_targets == 44
