"""Configurations are checked when they are born, and survive JSON."""

from __future__ import annotations

import json

import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import ModelConfig, graph_specs
from sacvit_deploy.families.two_stage import TwoStageConfig
from sacvit_deploy.spec import Preprocessing

TINY = ModelConfig("sac_vit", (32, 64), 4, 24, 4, 3, two_stage=TwoStageConfig())
DENSE = ModelConfig("vit", (32, 32), 4, 24, 4, 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"image_size": (36, 64)},
        {"image_size": (0, 64)},
        {"patch_size": 5},
        {"patch_size": 0},
        {"embed_dim": 25},
        {"num_heads": 0},
        {"num_classes": 0},
        {"depth": 3},
        {"family": "swin"},
        {"family": "vit"},
        {"two_stage": None},
        {"alpha": 0},
        {"alpha": 1},
        {"alpha": 0.01},
        {"alpha": 0.999, "target_rounding": "ceil"},
        {"score_beta": 1},
        {"score_first_block": -1},
        {"score_first_block": 4},
        {"target_rounding": "round"},
        {"exit_comparison": "=="},
        {"attention": "sparse"},
        {"cls_update": "max"},
        {"non_target_source": "middle"},
        {"position_tables": 3},
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
    with pytest.raises(ConfigError, match="one stage"):
        DENSE.replace(alpha=0.4)
    with pytest.raises(ConfigError, match="one stage"):
        _ = DENSE.num_targets


@pytest.mark.parametrize(
    ("alpha", "rounding", "side", "targets"),
    [
        (0.5, "floor", 7, 24),
        (0.5, "floor", 9, 40),
        (0.5, "ceil", 7, 25),
        (0.5, "ceil", 9, 41),
        (0.88, "floor", 5, 22),
        (0.88, "ceil", 5, 22),
        (0.28, "ceil", 5, 7),
        (0.07, "ceil", 10, 7),
        (0.29, "floor", 10, 29),
        (0.57, "floor", 10, 57),
    ],
)
def test_targets_are_counted_in_the_reals(alpha, rounding, side, targets):
    stages = TwoStageConfig(alpha=alpha, target_rounding=rounding)
    config = ModelConfig("sac_vit", (2 * side, 2 * side), 1, 24, 4, 3, two_stage=stages)
    assert config.num_targets == targets


def test_grids_of_a_wide_picture():
    assert TINY.fine_grid == (8, 16)
    assert TINY.coarse_grid == (4, 8)
    assert (TINY.num_fine_tokens, TINY.num_coarse_tokens) == (128, 32)


@pytest.mark.parametrize("config", [TINY, DENSE], ids=lambda c: c.family)
def test_survives_json(config):
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("change", [{"depht": 3}, {"image_size": 3}, {"two_stage": {"gamma": 1}}])
def test_unreadable_description_is_refused(change):
    with pytest.raises(ConfigError, match="cannot be read"):
        ModelConfig.from_dict({**TINY.to_dict(), **change})


def test_missing_field_is_refused():
    values = TINY.to_dict()
    del values["image_size"]
    with pytest.raises(ConfigError, match="image_size"):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(
    "fields", [{"crop_ratio": 0}, {"crop_ratio": 1.5}, {"std": (0, 1, 1)}, {"interpolation": "box"}]
)
def test_impossible_preprocessing_is_refused(fields):
    with pytest.raises(ConfigError):
        Preprocessing((32, 32), **fields)


def test_graphs_hand_over_what_the_second_asks_for():
    first, second = graph_specs(TINY)
    assert (first.file, second.file) == ("ee.onnx", "sac.onnx")
    produced = {t.name: t for t in first.outputs}
    for tensor in second.inputs:
        if tensor.name in produced:
            assert tensor == produced[tensor.name]
    shapes = {t.name: t.shape for t in second.inputs}
    assert shapes["fine_index"] == ("batch", 4 * TINY.num_targets)
    assert [g.role for g in graph_specs(DENSE)] == ["single"]
