from __future__ import annotations

import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import dense_body_macs, graph_macs, preset
from sacvit_deploy.families.stvit_r import STVIT_R, key_side, normalised_values
from tests.families.mac_counter import counted_macs, exported
from tests.families.test_swin import torch_macs

DEMO = preset("stvit_r_swin_demo_128")


def giga(name: str, counted) -> float:
    (macs,) = graph_macs(preset(name), counted).values()
    return macs / 1e9


# Table 3 and table 5 of the paper: 5.83, 10.26, 134 and 233 G.
@pytest.mark.parametrize(
    ("name", "computed"),
    [
        ("stvit_r_swin_small_224", 5.826),
        ("stvit_r_swin_base_224", 10.264),
        ("stvit_r_swin_small_backbone", 134.04),
        ("stvit_r_swin_base_backbone", 232.11),
    ],
)
def test_the_figures_of_the_paper(name, computed):
    assert giga(name, "papers") == pytest.approx(computed, rel=1e-4)


# The authors project the keys of every window again, and count 5 for each normalised value.
@pytest.mark.parametrize(
    ("name", "computed"), [("stvit_r_swin_small_224", 5.646), ("stvit_r_swin_base_224", 9.943)]
)
def test_keys_that_are_projected_once(name, computed):
    norms = 5 * normalised_values(preset(name)) / 1e9
    assert giga(name, "graph") + norms == pytest.approx(computed, abs=0.0005)


@pytest.mark.parametrize("name", STVIT_R.presets)
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


def test_the_dense_body_is_that_of_swin():
    dense, semantic = (preset(f"{name}_small_224") for name in ("swin", "stvit_r_swin"))
    assert dense_body_macs(semantic) == dense_body_macs(dense) == graph_macs(dense)["single"]


def test_the_squares_of_the_classifier_are_as_published():
    assert key_side(preset("stvit_r_swin_small_224")) == 10


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"sample_window": None}, "1 to 4, the window"),
        ({"sample_window": 5}, "1 to 4, the window"),
        ({"depths": (2, 2, 8, 2), "depth": 14}, "a multiple of 6"),
        ({"embed_dim": 51, "num_heads": 3}, "even"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(wrong, word):
    with pytest.raises(ConfigError, match=word):
        DEMO.replace(**wrong)
