from __future__ import annotations

import json
import sys

import pytest

from tests.training.conftest import write_pictures

_TOML = """
output = "run"

[model]
preset = "sac_demo_patch8_64"
num_classes = 3
image_size = [16, 16]
patch_size = 4
embed_dim = 16
depth = 2
num_heads = 2
score_first_block = 1

[data]
train = "{train}"
validation = "{validation}"

[schedule]
epochs = 1
all_tokens_epochs = 0
warmup_epochs = 0
batch_size = 12
"""


@pytest.fixture
def config_file(tmp_path):
    pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    train = write_pictures(tmp_path / "train", 8, seed=0)
    validation = write_pictures(tmp_path / "validation", 4, seed=1)
    path = tmp_path / "tiny.toml"
    path.write_text(_TOML.format(train=train.as_posix(), validation=validation.as_posix()))
    return path


def test_json_names_the_checkpoint(invoke, config_file, tmp_path):
    ran = invoke("train", config_file, "--json")
    document = json.loads(ran.out)
    assert document["checkpoint"] == str(tmp_path / "run" / "last.safetensors")
    assert document["steps"] == 2
    assert set(document["metrics"]) == {"top1", "top1_early_exit"}
    assert ran.err == ""


def test_the_output_of_the_command_line_wins(invoke, config_file, tmp_path):
    ran = invoke("train", config_file, "--output", tmp_path / "other")
    assert ran.code == 0
    assert "weights after 2 steps" in ran.out
    assert (tmp_path / "other" / "best.safetensors").exists()
    assert not (tmp_path / "run").exists()


def test_a_missing_config(refused, tmp_path):
    assert "none.toml" in refused("train", tmp_path / "none.toml")


def test_a_backbone_is_refused_by_name(refused, config_file):
    text = config_file.read_text().partition("num_classes")[0]
    config_file.write_text(text.replace("sac_demo_patch8_64", "swin_tiny_backbone"))
    said = refused("train", config_file)
    assert "The preset swin_tiny_backbone gives features, and training needs classes." in said
