"""Weights that do not fit end in one full list."""

from __future__ import annotations

import re

import pytest
import torch

from tests.model.stored_weights import read_weights, refusal, weights_of, write
from tests.tiny_models import CF_LV, GATED

# Weights that do not fit


def test_every_key_that_does_not_fit_is_listed_at_once(tmp_path, tiny):
    state = weights_of(tiny)
    missing = ["cls_token", "blocks.2.attn.qkv.weight", "fusion.mlp.fc1.bias"]
    for name in missing:
        del state[name]
    state["blocks.1.ls1.gamma"] = torch.zeros(24)
    state["extra"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(25)
    state["blocks.3.mlp.fc1.weight"] = torch.zeros(96, 24, dtype=torch.int8)
    problem = refusal(write(tmp_path, state), tiny).problem
    assert "Missing (3): cls_token, blocks.2.attn.qkv.weight, fusion.mlp.fc1.bias" in problem
    assert "Unexpected (2): blocks.1.ls1.gamma, extra" in problem
    assert "norm.weight: found (25), wanted (24)" in problem
    assert "blocks.3.mlp.fc1.weight: found int8 (96, 24), wanted (96, 24)" in problem


def test_long_lists_stay_readable_and_complete(tmp_path, tiny):
    state = weights_of(tiny)
    for name in [n for n in state if n.startswith(("blocks.1.", "blocks.2.", "blocks.3."))]:
        del state[name]
    problem = refusal(write(tmp_path, state), tiny).problem
    assert "Missing (36): blocks.{1-3}.norm1.weight, blocks.{1-3}.norm1.bias" in problem


def test_wrong_number_of_classes(tmp_path, tiny):
    path = write(tmp_path, weights_of(tiny.replace(num_classes=10)))
    error = refusal(path, tiny)
    assert "has 10 classes, the model 5" in error.problem
    assert "head.weight: found (10, 24), wanted (5, 24)" in error.problem
    assert "--set num_classes=10" in error.fix
    assert "num_classes = 10 in [model]" in error.fix
    read_weights(path, tiny.replace(num_classes=10))


def test_another_size_of_the_same_family(tmp_path, tiny):
    other = tiny.replace(embed_dim=48, depth=6, patch_size=8, image_size=(64, 64))
    error = refusal(write(tmp_path, weights_of(other)), tiny)
    assert "blocks.{0-3}.attn.qkv.weight: found (144, 48), wanted (72, 24)" in error.problem
    fix = error.fix
    assert "depth 6, embed_dim 48, patch_size 8" in fix
    assert "depth 4, embed_dim 24, patch_size 4" in fix


def test_two_stage_weights_into_the_dense_model(tmp_path, tiny, tiny_dense):
    error = refusal(write(tmp_path, weights_of(tiny)), tiny_dense)
    assert "Missing (1): pos_embed" in error.problem
    assert "fusion.mlp.fc1.weight" in error.problem
    assert "a preset such as sac_" in error.fix


def test_the_stem_of_lv_vit_is_recognised(tmp_path, tiny):
    error = refusal(write(tmp_path, weights_of(CF_LV)), tiny.replace(patch_size=8))
    assert "choose a lv_ or cf_lv_ preset" in error.fix
    assert f"patch_size {CF_LV.patch_size}" in error.fix


def test_the_gates_of_svit_are_recognised(tmp_path, tiny_dense):
    weights = weights_of(GATED)
    assert "choose an svit_ preset" in refusal(write(tmp_path, weights), tiny_dense).fix
    blocks = r"(blocks\.\d+\.)(.*)"
    published = {
        re.sub(blocks, r"\1TransformerEncoderLayer.self_\2", name).replace(
            "gates.", "selective_modules."
        ): tensor
        for name, tensor in weights.items()
    }
    assert "choose an svit_ preset" in refusal(write(tmp_path, published), tiny_dense).fix


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        ([f"layer{i}.0.{n}" for i in range(1, 5) for n in ("conv1.weight", "bn1.weight")], "DeiT"),
        ([f"vit.encoder.layer.{i}.attention.output.dense.weight" for i in range(12)], "timm"),
    ],
)
def test_another_kind_of_model(tmp_path, tiny, names, hint):
    error = refusal(write(tmp_path, {name: torch.zeros(3) for name in names}), tiny)
    assert "not a Vision Transformer of this family" in error.problem
    assert f"{len(names)} tensors" in error.problem
    assert names[0] in error.problem
    assert hint in error.fix
    assert len(error.problem) < 800


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(tmp_path, tiny, value):
    state = weights_of(tiny)
    state["blocks.2.attn.qkv.weight"][3, 4] = value
    state["pos_embed_fine"][0, 1, 2] = value
    problem = refusal(write(tmp_path, state), tiny).problem
    assert "in 2 of" in problem
    assert "blocks.2.attn.qkv.weight" in problem
    assert "pos_embed_fine" in problem


def test_weights_too_large_for_float32(tmp_path, tiny_dense):
    state = weights_of(tiny_dense)
    state["norm.bias"] = torch.full((24,), 1e300, dtype=torch.float64)
    assert "norm.bias" in refusal(write(tmp_path, state), tiny_dense).problem
