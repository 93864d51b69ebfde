from __future__ import annotations

import pytest

from sacvit_deploy.decode import decode, encode
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import ModelConfig, graph_macs, graph_specs, preset
from sacvit_deploy.families.svit import SVIT, capacities, gated_macs, published_shares
from sacvit_deploy.families.vit import dense_macs
from tests.families.mac_counter import counted_macs, exported
from tests.tiny_models import GATED

SMALL = "svit_deit_small_patch16_224"


def gigas(config: ModelConfig) -> float:
    return graph_macs(config)["single"] / 1e9


def test_cost_of_every_mode():
    """Table 6 rounds 2.94 up to 3.0; the dense network has 4.60."""
    config = preset(SMALL)
    assert gigas(config) == pytest.approx(4.66, abs=0.005)
    assert dense_macs(config) / 1e9 == pytest.approx(4.60, abs=0.005)
    for counts, wanted in (((138, 97, 68), 2.94), ((160, 128, 96), 3.41)):
        capacity = config.replace(mode="capacity", capacity=counts)
        assert gigas(capacity) == pytest.approx(wanted, abs=0.006)
    assert gigas(config.replace(mode="exact")) == pytest.approx(2.94, abs=0.005)


def test_a_strict_network_has_a_second_graph_for_every_token():
    config = preset(SMALL).replace(mode="capacity", capacity=(138, 97, 68), strict=True)
    assert [spec.file for spec in graph_specs(config)] == ["model.onnx", "masked.onnx"]
    assert graph_macs(config)["refine"] == graph_macs(preset(SMALL))["single"]


def test_shares_and_capacities_are_spread_over_the_gates():
    assert published_shares(9) == pytest.approx([0.7] * 3 + [0.49] * 3 + [0.343] * 3)
    assert published_shares(4) == pytest.approx([0.7, 0.7, 0.49, 0.343])
    config = preset(SMALL).replace(mode="capacity", capacity=(138, 97, 68))
    assert capacities(config) == (138,) * 3 + (97,) * 3 + (68,) * 3
    assert gated_macs(config, [1] * 8 + [0]) == gated_macs(config, [1] * 9)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"mode": "capacity"}, "capacity is"),
        ({"mode": "capacity", "capacity": (138, 97)}, "capacity is"),
        ({"mode": "capacity", "capacity": (198,)}, "capacity is"),
        ({"capacity": (0,)}, "capacity is"),
        ({"first_block": 12}, "first_block is 12"),
        ({"class_token": "none"}, "class_token is 'none'"),
        ({"strict": True}, "strict is True"),
        ({"mode": "fast"}, "mode"),
        ({"aux_weight": 0.25}, "aux_weight is 0.25"),
    ],
)
def test_what_does_not_fit_is_refused(fields, found):
    with pytest.raises(ConfigError, match=found):
        preset(SMALL).replace(**fields)


@pytest.mark.parametrize("name", SVIT.presets)
def test_a_configuration_survives_json(name):
    config = preset(name).replace(mode="capacity", capacity=(40,))
    assert decode(ModelConfig, encode(config), refuse_unknown=True) == config


def test_a_graph_for_one_picture_says_so():
    (exact,) = graph_specs(preset(SMALL).replace(mode="exact"))
    assert {tensor.shape[0] for tensor in (*exact.inputs, *exact.outputs)} == {1}


@pytest.mark.parametrize("fields", [{}, {"mode": "capacity", "capacity": (50, 30)}])
def test_the_exported_graph_costs_what_the_model_says(fields):
    config = GATED.replace(**fields)
    assert counted_macs(exported(config, "single")) == graph_macs(config, "graph")["single"]
