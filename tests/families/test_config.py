"""Configurations are checked when they are born, and survive JSON; presets are those promised."""

from __future__ import annotations

import itertools
import json

import pytest

from sacvit_deploy.decode import decode, encode
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families import FAMILIES
from sacvit_deploy.families.config import (
    PRESETS,
    ModelConfig,
    graph_macs,
    graph_specs,
    mean_macs_g,
    preset,
    preset_preprocessing,
)
from sacvit_deploy.families.two_stage import TwoStageConfig
from sacvit_deploy.families.vit import dense_macs

TINY = ModelConfig("sac_vit", (32, 64), 4, 24, 4, 3, two_stage=TwoStageConfig())
DENSE = ModelConfig("vit", (32, 32), 4, 24, 4, 3)
BODIES = (
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "deit_small_patch16_288",
    "deit_base_patch16_224",
)


@pytest.mark.parametrize(
    "fields",
    [
        {"image_size": (36, 64)},
        {"image_size": (0, 64)},
        {"image_size": [32, 64]},
        {"patch_size": 5},
        {"patch_size": 0},
        {"patch_size": 4.0},
        {"embed_dim": 25},
        {"num_heads": 0},
        {"num_classes": 0},
        {"mlp_ratio": "4"},
        {"depth": 3},
        {"depth": True},
        {"family": "swin"},
        {"family": "vit"},
        {"family": None},
        {"two_stage": None},
        {"alpha": 0},
        {"alpha": 1},
        {"alpha": 0.01},
        {"alpha": 0.999, "target_rounding": "ceil"},
        {"alpha": float("nan")},
        {"score_beta": 1},
        {"score_first_block": -1},
        {"score_first_block": 4},
        {"target_rounding": "round"},
        {"exit_comparison": "=="},
        {"attention": "sparse"},
        {"cls_update": "max"},
        {"non_target_source": "middle"},
        {"position_tables": 3},
        {"position_tables": True},
        {"window": 5},
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(fields):
    with pytest.raises(ConfigError) as caught:
        TINY.replace(**fields)
    named = set(fields) | {"two_stage", "score_first_block", "num_heads", "image_size"}
    assert any(name in caught.value.problem for name in named)
    assert caught.value.fix


def test_two_stage_fields_of_a_dense_model_are_refused():
    with pytest.raises(ConfigError, match="alpha was set"):
        DENSE.replace(alpha=0.4)
    with pytest.raises(ConfigError, match="one stage"):
        _ = DENSE.num_targets


def test_grids_of_a_wide_picture():
    assert TINY.fine_grid == (8, 16)
    assert TINY.coarse_grid == (4, 8)
    assert (TINY.num_fine_tokens, TINY.num_coarse_tokens) == (128, 32)


def read(values) -> ModelConfig:
    return decode(ModelConfig, values, "config", refuse_unknown=True)


@pytest.mark.parametrize("config", [TINY, DENSE], ids=lambda c: c.family)
def test_survives_json(config):
    assert read(json.loads(json.dumps(encode(config)))) == config


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"depht": 3}, "Unknown field: config.depht."),
        ({"image_size": 3}, "config.image_size is 3."),
        ({"two_stage": {"gamma": 1}}, "Unknown field: config.two_stage.gamma."),
        ({"depth": 0}, "depth is 0."),
    ],
)
def test_unreadable_description_is_refused(change, problem):
    with pytest.raises(ConfigError) as refused:
        read({**encode(TINY), **change})
    assert refused.value.problem == problem


def test_missing_field_is_refused():
    values = encode(TINY)
    del values["image_size"]
    with pytest.raises(ConfigError, match="image_size"):
        read(values)


def test_every_promised_preset_is_there():
    prefixes = ("sac_", "cf_", "lf_", "")
    promised = {prefix + body for prefix, body in itertools.product(prefixes, BODIES)}
    assert promised <= set(PRESETS)


FAMILY_OF = {
    "sac_": "sac_vit",
    "cf_lv_": "cf_lv_vit",
    "cf_": "cf_vit",
    "lf_": "lf_vit",
    "lv_": "lv_vit",
    "stvit_r_": "stvit_r",
    "stvit_": "stvit",
    "svit_adapter_": "svit_adapter",
    "svit_": "svit",
    "swin_": "swin",
    "deit_": "vit",
    "demo_": "vit",
}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_family_follows_the_prefix(name):
    config = preset(name)
    family = next(family for prefix, family in FAMILY_OF.items() if name.startswith(prefix))
    assert config.family == family
    assert (config.two_stage is not None) == (FAMILIES[family].section == "two_stage")
    assert preset_preprocessing(config).crop == config.image_size


def test_unknown_preset_names_the_nearest_ones():
    match = r"no preset 'sac_vit_small_224'(.|\n)*sac_deit_small_patch16_224"
    with pytest.raises(ConfigError, match=match):
        preset("sac_vit_small_224")


def test_graphs_come_in_the_order_in_which_they_run():
    assert [graph.role for graph in graph_specs(TINY)] == ["early_exit", "refine"]
    assert [graph.role for graph in graph_specs(DENSE)] == ["single"]


def test_the_mean_cost_of_one_stage_does_not_depend_on_exits():
    dense = preset("deit_small_patch16_224")
    assert mean_macs_g(dense, 0.7) == mean_macs_g(dense, 0) == dense_macs(dense) / 1e9


def test_the_mean_cost_of_two_stages_grows_with_the_refined_share():
    early, refine = graph_macs(TINY).values()
    assert mean_macs_g(TINY, 0) == early / 1e9
    assert mean_macs_g(TINY, 0.25) == pytest.approx((early + refine / 4) / 1e9)
