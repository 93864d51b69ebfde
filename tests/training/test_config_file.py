from __future__ import annotations

import sys

import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.training.config import read_train_config, train_config_from_dict

_TOML = """
output = "runs/demo"
seed = 4

[model]
preset = "sac_demo_patch8_64"
num_classes = 7
alpha = 0.75

[data]
train = "pictures/train.zip"

[schedule]
epochs = 6
all_tokens_epochs = 2

[optimizer]
learning_rate = 1
betas = [0.8, 0.9]

[loss]
teacher = "teacher.safetensors"
"""
_MINIMAL = {"model": {"preset": "sac_demo_patch8_64"}, "data": {"train": "t"}, "output": "o"}


@pytest.fixture
def toml_file(tmp_path):
    pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    path = tmp_path / "demo.toml"
    path.write_text(_TOML)
    return path


def test_toml(toml_file, tmp_path):
    config = read_train_config(toml_file)
    assert (config.seed, config.schedule.epochs) == (4, 6)
    assert (config.model.num_classes, config.model.stages.alpha) == (7, 0.75)
    assert config.optimizer.betas == (0.8, 0.9)
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.output == tmp_path / "runs/demo"
    assert config.data.train == tmp_path / "pictures/train.zip"
    assert config.loss.teacher == tmp_path / "teacher.safetensors"
    assert config.data.validation is None


def test_yaml_reads_the_same(toml_file, tmp_path):
    yaml = pytest.importorskip("yaml")
    tomllib = pytest.importorskip("tomllib")
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(tomllib.loads(_TOML)))
    assert read_train_config(path) == read_train_config(toml_file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, "Unknown field in .the file.: epochs"),
        ({"schedule": {"epoch": 3}}, r"Unknown field in \[schedule\]: epoch"),
        ({"schedule": {"epochs": "3"}}, "schedule.epochs is '3'"),
        ({"schedule": {"epochs": True}}, "schedule.epochs is True"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas"),
        ({"optimizer": 3}, "'optimizer' is no table"),
        ({"data": {}}, r"\[data\] is incomplete"),
        ({"data": {"train": 3}}, "data.train is 3"),
        ({"model": {"num_classes": 3}}, "names no preset"),
        ({"model": {"preset": "nothing"}}, "no preset 'nothing'"),
        ({"model": {"preset": "sac_demo_patch8_64", "width": 3}}, "Unknown model field: width"),
    ],
)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        train_config_from_dict({**_MINIMAL, **changes})


@pytest.mark.parametrize("missing", ["model", "data", "output"])
def test_what_must_be_given(missing):
    values = {key: value for key, value in _MINIMAL.items() if key != missing}
    with pytest.raises(ConfigError, match=f"{missing!r} is missing"):
        train_config_from_dict(values)


def test_errors_name_the_file(toml_file):
    toml_file.write_text(_TOML.replace("epochs = 6", "epochs = 0"))
    with pytest.raises(ConfigError, match=r"demo\.toml: schedule\.epochs is 0"):
        read_train_config(toml_file)


@pytest.mark.parametrize("text", ["epochs = ", 'a = "x'])
def test_broken_toml(toml_file, text):
    toml_file.write_text(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_train_config(toml_file)


def test_broken_yaml(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "demo.yaml"
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_train_config(path)


def test_missing_file_and_unknown_format(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_train_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"neither \.toml nor \.yaml"):
        read_train_config(tmp_path / "demo.json")
