"""Every checkpoint that cannot be used ends in one error that says why."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoints import load_checkpoint, load_weights, read_config


def weights_of(config):
    torch.manual_seed(0)
    return {k: torch.randn_like(v) for k, v in build_model(config).state_dict().items()}


def write(tmp_path, content, name="weights.pth"):
    path = tmp_path / name
    torch.save(content, path)
    return path


def refusal(path, config) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, config)
    assert str(path.name) in caught.value.problem
    assert caught.value.fix
    return caught.value


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
    if kind == "safetensors":
        with pytest.raises(CheckpointError, match="truncated"):
            read_config(path)


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
            read_config(path)


# Content


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_does_not_run(tmp_path, tiny, zipped):
    path, mark = tmp_path / "evil.pth", tmp_path / "mark"
    content = {"model": weights_of(tiny), "extra": Trap(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    error = refusal(path, tiny)
    assert ".open" in error.problem
    assert "torch.save(" in error.fix
    assert not mark.exists()


def test_a_whole_pickled_model_is_refused(tmp_path, tiny):
    error = refusal(write(tmp_path, build_model(tiny)), tiny)
    assert "sacvit_deploy.model.two_stage.TwoStageViT" in error.problem
    assert "state_dict()" in error.fix


@pytest.mark.parametrize("content", [{"epoch": 3, "lr": 0.1}, {}, [1, 2], torch.zeros(3)])
def test_no_weights_inside(tmp_path, tiny, content):
    error = refusal(write(tmp_path, content), tiny)
    assert "holds no weights" in error.problem
    assert "state_dict" in error.fix


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
    load_checkpoint(path, tiny.replace(num_classes=10))


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
    assert "sac_ or cf_ preset" in error.fix


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


def test_two_models_in_one_file(tmp_path, tiny_dense):
    state = weights_of(tiny_dense)
    state["module.cls_token"] = state["cls_token"]
    assert "two tensors for cls_token" in refusal(write(tmp_path, state), tiny_dense).problem


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


def test_a_refused_file_leaves_the_model_alone(tmp_path, tiny):
    model = build_model(tiny)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = weights_of(tiny)
    del state["head.bias"]
    with pytest.raises(CheckpointError):
        load_weights(model, write(tmp_path, state))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
