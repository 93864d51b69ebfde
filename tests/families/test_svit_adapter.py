from __future__ import annotations

import pytest

from sacvit_deploy.decode import decode, encode
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import (
    ModelConfig,
    graph_macs,
    graph_specs,
    number_of_classes,
    preset,
)
from sacvit_deploy.families.svit_adapter import SVIT_ADAPTER
from sacvit_deploy.model.build import build_model
from tests.families.mac_counter import counted_macs, exported
from tests.tiny_models import ADAPTED

SMALL = preset("svit_adapter_small_backbone")


def gigas(config: ModelConfig) -> float:
    return graph_macs(config)["backbone"] / 1e9


def test_its_graph_has_features_and_what_the_gates_decided():
    (backbone,) = graph_specs(SMALL.replace(mode="capacity", capacity=(2944, 2064, 1448)))
    assert (backbone.role, backbone.file) == ("backbone", "backbone.onnx")
    assert [(tensor.name, tensor.shape[1:]) for tensor in backbone.outputs] == [
        ("c2", (384, 200, 336)),
        ("c3", (384, 100, 168)),
        ("c4", (384, 50, 84)),
        ("c5", (384, 25, 42)),
        ("kept", (9,)),
        ("kept_mask", (9, 4200)),
        ("overflow", ()),
    ]
    assert number_of_classes(SMALL) == 0
    (exact,) = graph_specs(SMALL.replace(mode="exact"))
    assert {tensor.shape[0] for tensor in (*exact.inputs, *exact.outputs)} == {1}


@pytest.mark.parametrize("fields", [{}, {"mode": "capacity", "capacity": (10,)}])
def test_the_exported_graph_costs_what_the_formula_says(fields):
    config = ADAPTED.replace(**fields)
    found = counted_macs(exported(config, "backbone"))
    assert found == graph_macs(config, "graph")["backbone"]


def test_gates_save_a_third():
    """Computed: the paper gives no such figures. A block of 4,200 tokens costs 21 G."""
    figures = {"tiny": (146.7, 94.8), "small": (344.6, 224.4)}
    for body, (masked, exact) in figures.items():
        config = preset(f"svit_adapter_{body}_backbone")
        assert gigas(config) == pytest.approx(masked, abs=0.05)
        assert gigas(config.replace(mode="exact")) == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"image_size": (64, 80)}, "multiples of 32"),
        ({"patch_size": 8}, "patch_size"),
        ({"interactions": 3}, "divisor of the 4 blocks"),
        ({"deform_heads": 5}, "divisor of the embedding width"),
        ({"num_points": 0}, "num_points"),
        ({"ffn_ratio": 0.01}, "hidden unit"),
        ({"class_token": "always"}, "class_token"),
        ({"mode": "capacity", "capacity": (25,)}, "1 to 24"),
        ({"mode": "capacity", "capacity": (9,), "strict": True}, "no second graph"),
        ({"first_block": 4}, "first_block"),
        ({"stem": "conv"}, "stem"),
        ({"qkv_bias": False}, "qkv_bias"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(wrong, word):
    with pytest.raises(ConfigError, match=word):
        ADAPTED.replace(**wrong)


@pytest.mark.parametrize("name", SVIT_ADAPTER.presets)
def test_a_configuration_survives_json(name):
    config = preset(name)
    assert decode(ModelConfig, encode(config), refuse_unknown=True) == config


def test_the_weights_that_tell_its_sizes():
    state = build_model(ADAPTED).state_dict()
    for name, shape in SVIT_ADAPTER.stored_shapes(ADAPTED).items():
        assert tuple(state[name].shape) == shape


def test_other_families_have_no_such_section():
    with pytest.raises(ConfigError, match="adapter"):
        preset("swin_demo_128").replace(adapter=ADAPTED.adapter)
    with pytest.raises(ConfigError, match="adapter"):
        ADAPTED.replace(adapter=None)
