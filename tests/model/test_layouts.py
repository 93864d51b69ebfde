"""Published layouts and other resolutions become this package's own layout."""

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
