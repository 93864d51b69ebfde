"""Published layouts and other resolutions; weights that do not fit end in one full list."""

from __future__ import annotations

import logging

import pytest
import torch

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoints import Checkpoint, save_checkpoint
from sacvit_deploy.model.two_stage import TwoStageViT, resize_position_table, select_tokens
from tests.model.stored_weights import assert_same, read_weights, refusal, weights_of, write
from tests.tiny_models import CF_LV

# Layouts


def test_cf_vit_layout(tmp_path, golden_params, golden_config):
    found = read_weights(write(tmp_path, {"model": golden_params}), golden_config)
    build_model(golden_config).load_state_dict(found, strict=True)
    assert torch.equal(found["pos_embed_coarse"], golden_params["pos_embed_list.0"])
    assert torch.equal(found["pos_embed_fine"], golden_params["pos_embed_list.1"])
    assert torch.equal(found["fusion.norm.bias"], golden_params["reuse_block.0.bias"])
    assert torch.equal(found["fusion.mlp.fc2.weight"], golden_params["reuse_block.1.fc2.weight"])


def test_cf_vit_weights_fit_a_sac_vit(tmp_path, golden_params, golden_config):
    stages = {"target_rounding": "floor", "exit_comparison": ">", "attention": "clustered"}
    config = golden_config.replace(family="sac_vit", **stages)
    found = read_weights(write(tmp_path, golden_params), config)
    build_model(config).load_state_dict(found, strict=True)


def test_dense_deit_into_the_dense_model(tmp_path, tiny_dense):
    state = weights_of(tiny_dense)
    assert_same(read_weights(write(tmp_path, {"model": state}), tiny_dense), state)


@pytest.mark.parametrize("tables", [1, 2])
def test_dense_deit_starts_a_sac_vit(tmp_path, tiny, tiny_dense, tables, caplog):
    dense, config = weights_of(tiny_dense), tiny.replace(position_tables=tables)
    with caplog.at_level(logging.WARNING):
        found = read_weights(write(tmp_path, dense), config)
    assert "start for training" in caplog.text
    build_model(config).load_state_dict(found, strict=True)
    assert torch.equal(found["pos_embed_fine"], dense["pos_embed"])
    if tables == 2:
        wanted = resize_position_table(dense["pos_embed"], (8, 8), (4, 4))
        assert torch.equal(found["pos_embed_coarse"], wanted)
    for name in set(dense) - {"pos_embed"}:
        assert torch.equal(found[name], dense[name])


def test_dense_deit_start_is_neutral_and_can_learn(tmp_path, tiny, tiny_dense):
    dense = build_model(tiny_dense).eval()
    path = write(tmp_path, dense.state_dict())
    config = tiny.replace(attention="joint")
    model = Checkpoint.read(path).model(config)
    assert isinstance(model, TwoStageViT)
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    coarse = model.early_exit(image)
    assert (model.fusion(coarse.features) == 0).all()
    # Every token refined: the start computes what the dense network computes.
    everything = select_tokens(coarse.score, config, num_targets=16)
    logits = model.refine(image, coarse, everything)
    torch.testing.assert_close(logits, dense(image), rtol=1e-4, atol=1e-6)
    logits.square().sum().backward()
    gradient = model.fusion.mlp.fc2.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_dense_deit_start_is_the_same_every_time(tmp_path, tiny, tiny_dense):
    path = write(tmp_path, weights_of(tiny_dense))
    torch.manual_seed(1)
    first, drawn = read_weights(path, tiny), torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == drawn, "loading must leave the random state of the program alone"
    assert_same(read_weights(path, tiny), first)


def test_one_table_into_two(tmp_path, tiny):
    one = weights_of(tiny.replace(position_tables=1))
    found = read_weights(write(tmp_path, one), tiny)
    wanted = resize_position_table(one["pos_embed_fine"], (8, 8), (4, 4))
    assert_same(found, {**one, "pos_embed_coarse": wanted})


def test_one_table_into_one(tmp_path, tiny):
    config = tiny.replace(position_tables=1)
    state = weights_of(config)
    assert_same(read_weights(write(tmp_path, state), config), state)


def test_two_tables_into_one_would_lose_one(tmp_path, tiny):
    path = write(tmp_path, weights_of(tiny))
    with pytest.raises(CheckpointError, match="pos_embed_coarse") as caught:
        read_weights(path, tiny.replace(position_tables=1))
    assert "position_tables=2" in caught.value.fix


# Other resolutions


def test_other_resolution_is_interpolated(tmp_path, tiny):
    state = weights_of(tiny)
    larger = tiny.replace(image_size=(40, 40))
    found = read_weights(write(tmp_path, state), larger)
    build_model(larger).load_state_dict(found, strict=True)
    for name, old, new in (("pos_embed_fine", 8, 10), ("pos_embed_coarse", 4, 5)):
        wanted = resize_position_table(state[name], (old, old), (new, new))
        assert torch.equal(found[name], wanted)


def test_square_deit_into_a_wide_sac_vit(tmp_path, tiny, tiny_dense):
    state, wide = weights_of(tiny_dense), tiny.replace(image_size=(24, 48))
    found = read_weights(write(tmp_path, state), wide)
    build_model(wide).load_state_dict(found, strict=True)
    for name, grid in (("pos_embed_fine", (6, 12)), ("pos_embed_coarse", (3, 6))):
        assert torch.equal(found[name], resize_position_table(state["pos_embed"], (8, 8), grid))


def test_stored_config_tells_the_grid_of_a_wide_table(tmp_path, tiny):
    wide, tall = tiny.replace(image_size=(16, 64)), tiny.replace(image_size=(64, 16))
    state, path = weights_of(wide), tmp_path / "wide.safetensors"
    save_checkpoint(path, state, wide)
    for target in (tall, tiny):  # as many tokens in another shape
        found = read_weights(path, target)
        wanted = resize_position_table(state["pos_embed_fine"], (4, 16), target.fine_grid)
        assert torch.equal(found["pos_embed_fine"], wanted)


def test_a_table_of_unknown_grid_is_misshapen(tmp_path, tiny_dense):
    state = weights_of(tiny_dense)
    state["pos_embed"] = state["pos_embed"][:, :-1]
    with pytest.raises(CheckpointError, match=r"pos_embed: found \(1, 64, 24\), wanted"):
        read_weights(write(tmp_path, state), tiny_dense)


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
    read_weights(path, tiny.replace(num_classes=10))


def test_another_size_of_the_same_family(tmp_path, tiny):
    other = tiny.replace(embed_dim=48, depth=6, patch_size=8, image_size=(64, 64))
    error = refusal(write(tmp_path, weights_of(other)), tiny)
    assert "blocks.{0-3}.attn.proj.weight: found (48, 48), wanted (24, 24)" in error.problem
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


def test_batch_counts_of_batch_norm_are_left_out(tmp_path):
    state = weights_of(CF_LV) | {"patch_embed.bn1.num_batches_tracked": torch.tensor(3)}
    read = Checkpoint.read(write(tmp_path, state)).weights(CF_LV)
    assert set(read) == set(weights_of(CF_LV))


def test_distilled_deit(tmp_path, tiny, tiny_dense):
    state = weights_of(tiny_dense)
    state |= {"dist_token": torch.zeros(1, 1, 24), "head_dist.weight": torch.zeros(5, 24)}
    state["pos_embed"] = torch.zeros(1, 66, 24)
    for config in (tiny, tiny_dense):
        error = refusal(write(tmp_path, state), config)
        assert "distilled" in error.problem
        assert "dist_token, head_dist.weight" in error.problem


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
