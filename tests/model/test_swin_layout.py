from __future__ import annotations

import re

import pytest
import torch

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.families.config import preset
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoints import Checkpoint, save_checkpoint

CLASSIFIERS = ["swin_demo_128", "stvit_r_swin_demo_128"]


def written(path, tensors, config):
    torch.save({"model": tensors}, path)
    return Checkpoint.read(path).weights(config)


def in_names_of_timm(state):
    def renamed(name: str) -> str:
        name = re.sub(
            r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name
        )
        name = re.sub(r"layer_scale_(\d)", r"ls\1.gamma", name)
        return re.sub(r"^head\.", "head.fc.", name)

    return {renamed(name): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_names_of_the_authors_and_of_timm(name, tmp_path):
    config = preset(name)
    state = build_model(config).state_dict()
    tables = {
        "layers.1.blocks.1.attn_mask": torch.zeros(4, 16, 16),
        "layers.1.blocks.1.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.int64),
    }
    for number, tensors in enumerate((state, in_names_of_timm(state))):
        found = written(tmp_path / f"{number}.pth", {**tensors, **tables}, config)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


def test_a_backbone_has_no_merging_after_the_last_stage(tmp_path):
    config = preset("stvit_r_swin_demo_128").replace(task="features")
    state = build_model(config).state_dict()
    assert "layers.3.downsample.norm.weight" not in state
    assert written(tmp_path / "own.pth", state, config).keys() == state.keys()


def test_weights_of_a_dense_network_do_not_become_semantic_ones(tmp_path):
    state = build_model(preset("swin_demo_128")).state_dict()
    with pytest.raises(CheckpointError, match=r"Missing.*layer_scale_1"):
        written(tmp_path / "dense.pth", state, preset("stvit_r_swin_demo_128"))


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("task", ["classes", "features"])
def test_a_stored_configuration_comes_back(name, task, tmp_path):
    config = preset(name).replace(task=task)
    path = tmp_path / "own.safetensors"
    save_checkpoint(path, build_model(config).state_dict(), config)
    assert Checkpoint.read(path).config == config


@pytest.mark.parametrize(
    "wrong",
    [{"window": 2}, {"num_heads": 6}, {"num_classes": 10**7}, {"mlp_ratio": 900.0}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_stored_configuration_of_other_sizes_is_refused(wrong, tmp_path):
    config = preset("swin_demo_128")
    path = tmp_path / "own.safetensors"
    save_checkpoint(path, build_model(config).state_dict(), config.replace(**wrong))
    with pytest.raises(CheckpointError, match="cannot be used"):
        Checkpoint.read(path)
