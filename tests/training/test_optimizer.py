from __future__ import annotations

import dataclasses

import pytest
import torch

from sacvit_deploy.families.config import preset
from sacvit_deploy.model.build import build_model
from sacvit_deploy.training.optimizer import learning_rate, make_optimizer, update_average


def test_vectors_and_tables_are_not_decayed(run):
    model = build_model(run.model)
    groups = make_optimizer(model, run.optimizer).param_groups
    kept, decayed = sorted(groups, key=lambda group: group["weight_decay"])
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    without = {names[id(parameter)] for parameter in kept["params"]}
    assert {
        "cls_token",
        "pos_embed_fine",
        "pos_embed_coarse",
        "norm.weight",
        "head.bias",
    } <= without
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_learning_rate_rises_then_falls(run):
    rates = [learning_rate(step, 4, run) for step in range(12)]
    peak = run.optimizer.learning_rate * run.schedule.batch_size / 512
    assert rates[:4] == pytest.approx([peak / 4, peak / 2, 3 * peak / 4, peak])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert run.optimizer.min_learning_rate < rates[-1] < peak / 10


def test_learning_rate_without_warm_up(run):
    still = dataclasses.replace(run, schedule=dataclasses.replace(run.schedule, warmup_epochs=0))
    assert learning_rate(0, 4, still) == pytest.approx(0.05 * 6 / 512)


def test_average_of_weights():
    weights = {"w": torch.zeros(2)}
    update_average(weights, {"w": torch.ones(2)}, 0.9, step=1000)
    torch.testing.assert_close(weights["w"], torch.full((2,), 0.1))
    early = {"w": torch.zeros(2)}
    update_average(early, {"w": torch.ones(2)}, 0.9999, step=0)
    torch.testing.assert_close(early["w"], torch.full((2,), 0.9))


def test_layers_nearer_the_picture_learn_more_slowly(run):
    model = build_model(run.model)
    config = dataclasses.replace(run.optimizer, layer_decay=0.5)
    scales = {
        id(parameter): group["scale"]
        for group in make_optimizer(model, config).param_groups
        for parameter in group["params"]
    }
    found = {name: scales[id(parameter)] for name, parameter in model.named_parameters()}
    depth = run.model.depth
    assert found["head.weight"] == found["norm.bias"] == found["fusion.mlp.fc1.weight"] == 1
    assert found[f"blocks.{depth - 1}.attn.qkv.weight"] == 0.5
    assert found["blocks.0.norm1.weight"] == 0.5**depth
    assert found["patch_embed.proj.weight"] == found["cls_token"] == 0.5 ** (depth + 1)


def test_gates_learn_at_a_rate_of_their_own(run):
    model = build_model(preset("svit_demo_patch8_64"))
    config = dataclasses.replace(run.optimizer, gate_scale=20.0)
    scales = {
        id(parameter): group["scale"]
        for group in make_optimizer(model, config).param_groups
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert scales[id(parameter)] == (20 if name.startswith("gates.") else 1), name
