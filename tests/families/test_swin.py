from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import (
    graph_macs,
    graph_specs,
    number_of_classes,
    preset,
)
from sacvit_deploy.families.swin import SWIN
from sacvit_deploy.model.build import build_model
from tests.families.mac_counter import counted_macs, exported

DEMO = preset("swin_demo_128")


def torch_macs(config) -> float:
    """Multiply-accumulates of the torch network, by torch's own counter."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build_model(config).eval()(torch.zeros(1, 3, *config.image_size))
    return float(counter.get_total_flops()) / 2


# Table 1 of the paper; for the backbones, table 5 of STViT's.
@pytest.mark.parametrize(
    ("name", "published", "digit"),
    [
        ("swin_tiny_224", 4.5, 0.05),
        ("swin_small_224", 8.7, 0.05),
        ("swin_base_224", 15.4, 0.05),
        ("swin_small_backbone", 194, 0.5),
        ("swin_base_backbone", 343, 1),
    ],
)
def test_the_figures_of_the_papers(name, published, digit):
    (macs,) = graph_macs(preset(name)).values()
    assert macs / 1e9 == pytest.approx(published, abs=digit)


@pytest.mark.parametrize("name", SWIN.presets)
def test_the_torch_network_costs_what_the_formula_says(name):
    config = preset(name)
    (macs,) = graph_macs(config, "graph").values()
    assert macs == torch_macs(config)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classes", "features"])
def test_the_exported_graph_costs_what_the_formula_says(task):
    config = DEMO.replace(task=task)
    ((role, macs),) = graph_macs(config, "graph").items()
    assert counted_macs(exported(config, role)) == macs


def test_a_classifier_has_logits_and_a_backbone_features():
    (single,) = graph_specs(DEMO)
    assert (single.role, single.file, single.outputs[0].name) == ("single", "model.onnx", "logits")
    assert number_of_classes(DEMO) == 50
    features = DEMO.replace(task="features", image_size=(100, 68))
    (backbone,) = graph_specs(features)
    assert (backbone.role, backbone.file) == ("backbone", "backbone.onnx")
    assert [(tensor.name, tensor.shape[1:]) for tensor in backbone.outputs] == [
        ("c2", (48, 25, 17)),
        ("c3", (96, 13, 9)),
        ("c4", (192, 7, 5)),
        ("c5", (384, 4, 3)),
    ]
    assert number_of_classes(features) == 0


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"depth": 13}, "sum of depths"),
        ({"depths": (2, 2, 6, 0)}, "1 or more"),
        ({"image_size": (128, 160)}, "multiples of 128"),
        ({"task": "features", "image_size": (130, 128)}, "multiples of 4"),
        ({"patch_size": 8}, "patch_size"),
        ({"window": 1}, "window"),
        ({"stem": "conv"}, "stem"),
        ({"aux_weight": 0.5}, "aux_weight"),
        ({"sample_window": 2}, "no semantic tokens"),
        ({"shortcut": True}, "no semantic tokens"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(wrong, word):
    with pytest.raises(ConfigError, match=word):
        DEMO.replace(**wrong)


def test_other_families_have_no_such_section():
    with pytest.raises(ConfigError, match="swin"):
        preset("deit_small_patch16_224").replace(swin=DEMO.swin)
    with pytest.raises(ConfigError, match="swin"):
        DEMO.replace(swin=None)
