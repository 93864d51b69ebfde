from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner

from sacvit_deploy.commands.train import command
from sacvit_deploy.errors import ConfigError
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


def test_json_names_the_checkpoint(config_file, tmp_path):
    result = CliRunner().invoke(command, [str(config_file), "--json"], catch_exceptions=False)
    document = json.loads(result.stdout)
    assert document["checkpoint"] == str(tmp_path / "run" / "last.safetensors")
    assert document["steps"] == 2
    assert set(document["metrics"]) == {"top1", "top1_early_exit"}
    assert result.stderr == ""


def test_the_output_of_the_command_line_wins(config_file, tmp_path):
    arguments = [str(config_file), "--output", str(tmp_path / "other")]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "weights after 2 steps" in result.stdout
    assert (tmp_path / "other" / "best.safetensors").exists()
    assert not (tmp_path / "run").exists()


def test_a_missing_config(tmp_path):
    result = CliRunner().invoke(command, [str(tmp_path / "none.toml")])
    assert isinstance(result.exception, ConfigError)
