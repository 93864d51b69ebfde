from __future__ import annotations

import dataclasses

import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import graph_macs, graph_specs, preset
from sacvit_deploy.families.vit import dense_macs
from tests.families.mac_counter import counted_macs, exported
from tests.tiny_models import DENSE_LV


def test_cost_of_the_paper():
    """Table 2 of CF-ViT: 6.6 for LV-ViT-S."""
    config = preset("lv_vit_small_224")
    assert graph_macs(config)["single"] == dense_macs(preset("cf_lv_vit_small_224"))
    assert round(graph_macs(config)["single"] / 1e9, 2) == 6.55
    assert [graph.file for graph in graph_specs(config)] == ["model.onnx"]


def test_the_exported_graph_costs_what_the_model_says():
    assert counted_macs(exported(DENSE_LV, "single")) == graph_macs(DENSE_LV)["single"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"residual_scale": 0.0},
        {"aux_weight": -1.0},
        {"patch_size": 3, "image_size": (33, 48)},
        {"stem": "x"},
    ],
)
def test_a_body_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        dataclasses.replace(DENSE_LV, **wrong)
