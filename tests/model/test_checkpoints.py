"""Reading and writing files; every file that is no checkpoint ends in one error that says why."""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import pathlib

import numpy as np
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


def test_the_content_tells_the_format_not_the_name(tmp_path, tiny_dense):
    state = weights_of(tiny_dense)
    save_file(state, tmp_path / "renamed.pth")
    assert_same(read_weights(tmp_path / "renamed.pth", tiny_dense), state)
    renamed = write(tmp_path, state, "renamed.safetensors")
    assert_same(read_weights(renamed, tiny_dense), state)


@pytest.mark.parametrize("name", ["w" * length for length in range(1, 260, 8)])
def test_a_safetensors_file_is_known_whatever_its_header_length(tmp_path, name):
    """The length comes first in the file, and its lowest byte may be that of a pickle."""
    path = tmp_path / "weights.safetensors"
    save_file({name: torch.zeros(1)}, path)
    assert list(Checkpoint.read(path).tensors) == [name]


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
    assert_same(read_weights(path, tiny_dense), state)
    assert set(torch.serialization.get_safe_globals()) == before


def test_two_models_in_one_file(tmp_path, tiny_dense):
    state = weights_of(tiny_dense)
    state["module.cls_token"] = state["cls_token"]
    assert "two tensors for cls_token" in refusal(write(tmp_path, state), tiny_dense).problem


@pytest.mark.parametrize("content", [{"epoch": 3, "lr": 0.1}, {}, [1, 2], torch.zeros(3)])
def test_no_weights_inside(tmp_path, tiny, content):
    error = refusal(write(tmp_path, content), tiny)
    assert "holds no weights" in error.problem
    assert "state_dict" in error.fix


# Files


def test_no_such_file(tmp_path, tiny):
    assert "no file" in refusal(tmp_path / "none.pth", tiny).problem


def test_a_folder(tmp_path, tiny):
    write(tmp_path, {}, "inside.pth")
    error = refusal(tmp_path, tiny)
    assert "is a folder" in error.problem
    assert "inside.pth" in error.fix


@pytest.mark.parametrize("name", ["empty.pth", "empty.safetensors"])
def test_an_empty_file(tmp_path, tiny, name):
    (tmp_path / name).touch()
    assert "0 bytes" in refusal(tmp_path / name, tiny).problem


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path, tiny):
    path = write(tmp_path, weights_of(tiny))
    path.chmod(0)
    assert "cannot be read" in refusal(path, tiny).problem


@pytest.mark.parametrize("name", ["notes.pth", "notes.safetensors", "notes.bin"])
@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("epoch 1 loss 3.2\nepoch 2 loss 3.1\n", "torch.save"),
        ("hi", "torch.save"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("<!DOCTYPE html><html></html>", "web page"),
    ],
)
def test_a_text_renamed(tmp_path, tiny, name, text, hint):
    (tmp_path / name).write_text(text)
    error = refusal(tmp_path / name, tiny)
    assert "not a checkpoint" in error.problem
    assert hint in error.fix


def test_a_picture(tmp_path, tiny):
    (tmp_path / "cat.pth").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    assert "ff d8 ff e0" in refusal(tmp_path / "cat.pth", tiny).problem


def test_an_index_of_shards(tmp_path, tiny):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"cls_token": "model-00001-of-00002.safetensors"}}))
    error = refusal(path, tiny)
    assert "shards" in error.problem
    assert "merge" in error.fix


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_truncated(tmp_path, tiny, kind, keep):
    path = tmp_path / "weights.bin"
    if kind == "safetensors":
        save_file(weights_of(tiny), path)
    else:
        torch.save(weights_of(tiny), path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    error = refusal(path, tiny)
    assert "truncated" in error.problem
    assert error.__cause__ is not None


def test_a_zip_that_is_no_checkpoint(tmp_path, tiny):
    np.savez(tmp_path / "arrays.npz", x=np.zeros(3))
    assert "cannot be read" in refusal(tmp_path / "arrays.npz", tiny).problem


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_archive(tmp_path, tiny):
    path = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    assert "TorchScript" in refusal(path, tiny).problem


def test_damaged_stored_config(tmp_path, tiny):
    for text in ("{", "[]", '{"family": "swin"}'):
        path = tmp_path / "m.safetensors"
        save_file(weights_of(tiny), path, metadata={"sacvit_deploy_config": text})
        with pytest.raises(CheckpointError, match=r"configuration stored in .*m\.safetensors"):
            Checkpoint.read(path)
