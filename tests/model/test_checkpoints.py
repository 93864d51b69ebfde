"""Reading published layouts, and writing our own."""

from __future__ import annotations

import argparse
import collections
import logging
import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoints import (
    is_safetensors,
    load_checkpoint,
    load_weights,
    read_config,
    save_checkpoint,
)
from sacvit_deploy.model.two_stage import TwoStageViT, resize_position_table, select_tokens


def weights_of(config, seed=0):
    torch.manual_seed(seed)
    model = build_model(config)
    return {name: torch.randn_like(value) for name, value in model.state_dict().items()}


def write(tmp_path, content, name="weights.pth"):
    path = tmp_path / name
    torch.save(content, path)
    return path


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == torch.float32, name
        assert torch.equal(found[name], tensor), name


# Round trip


@pytest.mark.parametrize("kind", ["tiny", "tiny_dense"])
def test_saved_checkpoint_comes_back(tmp_path, request, kind):
    config = request.getfixturevalue(kind)
    state, path = weights_of(config), tmp_path / "model.safetensors"
    save_checkpoint(path, state, config)
    assert read_config(path) == config
    assert_same(load_checkpoint(path, config), state)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_saving_takes_views_and_parameters(tmp_path, tiny_dense):
    model = build_model(tiny_dense)
    state: dict[str, torch.Tensor] = dict(model.named_parameters())
    state["head.weight"] = torch.randn(24, 5).T
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, state, tiny_dense)
    assert torch.equal(load_checkpoint(path, tiny_dense)["head.weight"], state["head.weight"])


def test_saving_replaces_whole_or_not_at_all(tmp_path, tiny_dense, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, weights_of(tiny_dense), tiny_dense)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(CheckpointError, match="no space left"):
        save_checkpoint(path, weights_of(tiny_dense, seed=1), tiny_dense)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_saving_into_a_missing_folder(tmp_path, tiny_dense):
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "no" / "m.safetensors", weights_of(tiny_dense), tiny_dense)


def test_files_of_others_have_no_config(tmp_path, tiny_dense):
    assert read_config(write(tmp_path, weights_of(tiny_dense))) is None
    foreign = tmp_path / "timm.safetensors"
    save_file(weights_of(tiny_dense), foreign)
    assert read_config(foreign) is None


def test_load_weights_fills_the_model(tmp_path, tiny):
    state = weights_of(tiny)
    model = build_model(tiny)
    load_weights(model, write(tmp_path, state))
    assert_same(model.state_dict(), state)


# Containers, prefixes, types


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"state_dict": s},
        lambda s: {"module": s},
        lambda s: {"model_ema": s},
        lambda s: {"model": {}, "model_ema": s},
        lambda s: {"model": s, "model_ema": {k: v + 1 for k, v in s.items()}},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
        lambda s: {f"model.{k}": v for k, v in s.items()},
        lambda s: {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in s.items()}},
        lambda s: collections.OrderedDict(s),
        lambda s: {k: torch.nn.Parameter(v) for k, v in s.items()},
    ],
)
def test_containers_and_prefixes(tmp_path, tiny_dense, wrap):
    state = weights_of(tiny_dense)
    assert_same(load_checkpoint(write(tmp_path, wrap(state)), tiny_dense), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, tiny_dense, dtype):
    state = {name: value.to(dtype) for name, value in weights_of(tiny_dense).items()}
    wanted = {name: value.float() for name, value in state.items()}
    assert_same(load_checkpoint(write(tmp_path, state), tiny_dense), wanted)


def test_the_content_tells_the_format_not_the_name(tmp_path, tiny_dense):
    state = weights_of(tiny_dense)
    save_file(state, tmp_path / "renamed.pth")
    assert_same(load_checkpoint(tmp_path / "renamed.pth", tiny_dense), state)
    renamed = write(tmp_path, state, "renamed.safetensors")
    assert_same(load_checkpoint(renamed, tiny_dense), state)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_training_checkpoint_with_everything_in_it(tmp_path, tiny_dense, zipped):
    state = weights_of(tiny_dense)
    everything = {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(
            lr=0.1, output_dir=pathlib.Path("out"), nested=argparse.Namespace()
        ),
        "best": np.float64(81.1),
        "count": np.int64(3),
        "history": np.arange(4.0),
        "names": np.array(["a", "b"]),
        "meters": collections.defaultdict(list, {"loss": [1.0]}),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
    }
    path = tmp_path / "checkpoint.pth"
    torch.save(everything, path, _use_new_zipfile_serialization=zipped)
    before = set(torch.serialization.get_safe_globals())
    assert_same(load_checkpoint(path, tiny_dense), state)
    assert set(torch.serialization.get_safe_globals()) == before


# Layouts


def test_cf_vit_layout(tmp_path, golden_params, golden_config):
    found = load_checkpoint(write(tmp_path, {"model": golden_params}), golden_config)
    build_model(golden_config).load_state_dict(found, strict=True)
    assert torch.equal(found["pos_embed_coarse"], golden_params["pos_embed_list.0"])
    assert torch.equal(found["pos_embed_fine"], golden_params["pos_embed_list.1"])
    assert torch.equal(found["fusion.norm.bias"], golden_params["reuse_block.0.bias"])
    assert torch.equal(found["fusion.mlp.fc2.weight"], golden_params["reuse_block.1.fc2.weight"])


def test_cf_vit_weights_fit_a_sac_vit(tmp_path, golden_params, golden_config):
    stages = {"target_rounding": "floor", "exit_comparison": ">", "attention": "clustered"}
    config = golden_config.replace(family="sac_vit", **stages)
    found = load_checkpoint(write(tmp_path, golden_params), config)
    build_model(config).load_state_dict(found, strict=True)


def test_dense_deit_into_the_dense_model(tmp_path, tiny_dense):
    state = weights_of(tiny_dense)
    assert_same(load_checkpoint(write(tmp_path, {"model": state}), tiny_dense), state)


@pytest.mark.parametrize("tables", [1, 2])
def test_dense_deit_starts_a_sac_vit(tmp_path, tiny, tiny_dense, tables, caplog):
    dense, config = weights_of(tiny_dense), tiny.replace(position_tables=tables)
    with caplog.at_level(logging.WARNING):
        found = load_checkpoint(write(tmp_path, dense), config)
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
    model = TwoStageViT(config).eval()
    load_weights(model, path)
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
    first, drawn = load_checkpoint(path, tiny), torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == drawn, "loading must leave the random state of the program alone"
    assert_same(load_checkpoint(path, tiny), first)


def test_one_table_into_two(tmp_path, tiny):
    one = weights_of(tiny.replace(position_tables=1))
    found = load_checkpoint(write(tmp_path, one), tiny)
    wanted = resize_position_table(one["pos_embed_fine"], (8, 8), (4, 4))
    assert_same(found, {**one, "pos_embed_coarse": wanted})


def test_one_table_into_one(tmp_path, tiny):
    config = tiny.replace(position_tables=1)
    state = weights_of(config)
    assert_same(load_checkpoint(write(tmp_path, state), config), state)


def test_two_tables_into_one_would_lose_one(tmp_path, tiny):
    path = write(tmp_path, weights_of(tiny))
    with pytest.raises(CheckpointError, match="pos_embed_coarse") as caught:
        load_checkpoint(path, tiny.replace(position_tables=1))
    assert "position_tables=2" in caught.value.fix


# Other resolutions


def test_other_resolution_is_interpolated(tmp_path, tiny):
    state = weights_of(tiny)
    larger = tiny.replace(image_size=(40, 40))
    found = load_checkpoint(write(tmp_path, state), larger)
    build_model(larger).load_state_dict(found, strict=True)
    for name, old, new in (("pos_embed_fine", 8, 10), ("pos_embed_coarse", 4, 5)):
        wanted = resize_position_table(state[name], (old, old), (new, new))
        assert torch.equal(found[name], wanted)


def test_square_deit_into_a_wide_sac_vit(tmp_path, tiny, tiny_dense):
    state, wide = weights_of(tiny_dense), tiny.replace(image_size=(24, 48))
    found = load_checkpoint(write(tmp_path, state), wide)
    build_model(wide).load_state_dict(found, strict=True)
    for name, grid in (("pos_embed_fine", (6, 12)), ("pos_embed_coarse", (3, 6))):
        assert torch.equal(found[name], resize_position_table(state["pos_embed"], (8, 8), grid))


def test_stored_config_tells_the_grid_of_a_wide_table(tmp_path, tiny):
    wide, tall = tiny.replace(image_size=(16, 64)), tiny.replace(image_size=(64, 16))
    state, path = weights_of(wide), tmp_path / "wide.safetensors"
    save_checkpoint(path, state, wide)
    for target in (tall, tiny):  # as many tokens in another shape
        found = load_checkpoint(path, target)
        wanted = resize_position_table(state["pos_embed_fine"], (4, 16), target.fine_grid)
        assert torch.equal(found["pos_embed_fine"], wanted)


def test_a_table_of_unknown_grid_is_misshapen(tmp_path, tiny_dense):
    state = weights_of(tiny_dense)
    state["pos_embed"] = state["pos_embed"][:, :-1]
    with pytest.raises(CheckpointError, match=r"pos_embed: found \(1, 64, 24\), wanted"):
        load_checkpoint(write(tmp_path, state), tiny_dense)


@pytest.mark.parametrize("name", ["w" * length for length in range(1, 260, 8)])
def test_a_safetensors_file_is_known_whatever_its_header_length(tmp_path, name):
    """The length comes first in the file, and its lowest byte may be that of a pickle."""
    path = tmp_path / "weights.safetensors"
    save_file({name: torch.zeros(1)}, path)
    assert is_safetensors(path)
