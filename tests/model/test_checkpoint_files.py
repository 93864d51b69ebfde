"""Reading files; every one that is no checkpoint ends in one error that says why."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sacvit_deploy.model.checkpoints import Checkpoint
from tests.model.stored_weights import assert_same, read_weights, refusal, weights_of, write


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


@pytest.mark.parametrize("content", [{"epoch": 3, "lr": 0.1}, {}, [1, 2], torch.zeros(3)])
def test_no_weights_inside(tmp_path, tiny, content):
    error = refusal(write(tmp_path, content), tiny)
    assert "holds no weights" in error.problem
    assert "state_dict" in error.fix


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
