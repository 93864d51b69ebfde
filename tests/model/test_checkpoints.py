"""Reading and writing checkpoints; names, types and the stored configuration."""

from __future__ import annotations

import collections
import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoints import Checkpoint, save_checkpoint
from sacvit_deploy.records import WeightsOrigin
from tests.model.stored_weights import assert_same, read_weights, refusal, weights_of, write

# Round trip


@pytest.mark.parametrize("kind", ["tiny", "tiny_dense"])
def test_saved_checkpoint_comes_back(tmp_path, request, kind):
    config = request.getfixturevalue(kind)
    state, path = weights_of(config), tmp_path / "model.safetensors"
    save_checkpoint(path, state, config)
    assert Checkpoint.read(path).config == config
    assert_same(read_weights(path, config), state)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_equal_weights_give_equal_files(tmp_path, tiny):
    """The header's metadata had an order of its own in every file."""
    state = weights_of(tiny)
    backwards = dict(reversed(state.items()))
    path, found = tmp_path / "model.safetensors", set()
    for number in range(8):
        save_checkpoint(path, backwards if number % 2 else state, tiny)
        found.add(hashlib.sha256(path.read_bytes()).digest())
    assert len(found) == 1
    assert Checkpoint.read(path).config == tiny


def test_a_longer_header_does_not_end_in_the_tensors(tmp_path, tiny, monkeypatch):
    """Another release of safetensors may write the same header in fewer bytes."""
    state, path, dumps = weights_of(tiny), tmp_path / "model.safetensors", json.dumps
    monkeypatch.setattr(json, "dumps", lambda v, **how: dumps(v, **how) + " " * 9_999 * len(how))
    save_checkpoint(path, state, tiny)
    assert Checkpoint.read(path).config == tiny
    assert_same(read_weights(path, tiny), state)


def test_saving_takes_views_and_parameters(tmp_path, tiny_dense):
    model = build_model(tiny_dense)
    state: dict[str, torch.Tensor] = dict(model.named_parameters())
    state["head.weight"] = torch.randn(24, 5).T
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, state, tiny_dense)
    assert torch.equal(read_weights(path, tiny_dense)["head.weight"], state["head.weight"])


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
    assert Checkpoint.read(write(tmp_path, weights_of(tiny_dense))).config is None
    foreign = tmp_path / "timm.safetensors"
    save_file(weights_of(tiny_dense), foreign)
    assert Checkpoint.read(foreign).config is None


def test_a_model_is_built_with_the_weights(tmp_path, tiny):
    state = weights_of(tiny)
    model = Checkpoint.read(write(tmp_path, state)).model(tiny)
    assert_same(model.state_dict(), state)
    assert not model.training


def test_no_model_is_built_with_some_of_the_weights(tmp_path, tiny):
    state = weights_of(tiny)
    del state["head.bias"]
    with pytest.raises(CheckpointError, match=r"Missing \(1\): head\.bias"):
        Checkpoint.read(write(tmp_path, state)).model(tiny)


def test_the_file_is_read_once(tmp_path, tiny):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, weights_of(tiny), tiny)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    checkpoint = Checkpoint.read(path)
    path.unlink()
    assert checkpoint.config == tiny
    assert checkpoint.model(tiny).config == tiny
    assert checkpoint.origin == WeightsOrigin("checkpoint", file=path.name, sha256=sha256)


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
    assert_same(read_weights(write(tmp_path, wrap(state)), tiny_dense), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, tiny_dense, dtype):
    state = {name: value.to(dtype) for name, value in weights_of(tiny_dense).items()}
    wanted = {name: value.float() for name, value in state.items()}
    assert_same(read_weights(write(tmp_path, state), tiny_dense), wanted)


def test_two_models_in_one_file(tmp_path, tiny_dense):
    state = weights_of(tiny_dense)
    state["module.cls_token"] = state["cls_token"]
    assert "two tensors for cls_token" in refusal(write(tmp_path, state), tiny_dense).problem


def test_damaged_stored_config(tmp_path, tiny):
    for text in ("{", "[]", '{"family": "swin"}'):
        path = tmp_path / "m.safetensors"
        save_file(weights_of(tiny), path, metadata={"sacvit_deploy_config": text})
        with pytest.raises(CheckpointError, match=r"configuration stored in .*m\.safetensors"):
            Checkpoint.read(path)
