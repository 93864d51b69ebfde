from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

from sacvit_deploy.decode import encode
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.samples import sample_photographs
from sacvit_deploy.training.config import (
    AugmentationConfig,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    read_train_config,
    train_config_from_dict,
)

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


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        (AugmentationConfig, {"crop_scale": 0}, "crop_scale"),
        (AugmentationConfig, {"flip": 1.5}, "flip"),
        (AugmentationConfig, {"rand_augment_magnitude": 11}, "rand_augment_magnitude"),
        (ScheduleConfig, {"epochs": 0}, "epochs"),
        (ScheduleConfig, {"epochs": 10, "all_tokens_epochs": 11}, "all_tokens_epochs"),
        (ScheduleConfig, {"batch_size": 10, "accumulate": 3}, "accumulate"),
        (ScheduleConfig, {"epochs": 2, "all_tokens_epochs": 0}, "warmup_epochs"),
        (OptimizerConfig, {"learning_rate": 0.0}, "learning_rate"),
        (OptimizerConfig, {"ema_decay": 1.0}, "ema_decay"),
        (OptimizerConfig, {"precision": "float16"}, "precision"),
        (LossConfig, {"early_exit": "mse"}, "early_exit"),
        (LossConfig, {"teacher_temperature": 0.0}, "teacher_temperature"),
        (DataConfig, {"train": Path("x"), "workers": -1}, "workers"),
        (DataConfig, {"train": Path("x"), "on_corrupt": "ignore"}, "on_corrupt"),
    ],
)
def test_a_value_out_of_range_is_named(kind, fields, named):
    with pytest.raises(ConfigError, match=named):
        kind(**fields)


def test_defaults_are_the_papers_schedule():
    schedule = ScheduleConfig()
    assert (schedule.epochs, schedule.all_tokens_epochs, schedule.batch_size) == (350, 200, 1024)


def test_a_config_cannot_be_changed(run):
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 1


def test_to_dict_is_json(run: TrainConfig):
    document = json.loads(json.dumps(encode(run)))
    assert document["schedule"]["epochs"] == 3
    assert document["data"]["train"] == str(run.data.train)


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
        ({"epochs": 3}, "Unknown field: epochs"),
        ({"schedule": {"epoch": 3}}, "Unknown field: schedule.epoch"),
        ({"schedule": {"epochs": "3"}}, "schedule.epochs is '3'"),
        ({"schedule": {"epochs": True}}, "schedule.epochs is True"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas"),
        ({"optimizer": 3}, "optimizer is 3"),
        ({"data": {}}, "data.train is missing"),
        ({"data": {"train": 3}}, "data.train is 3"),
        ({"model": {"num_classes": 3}}, "names no preset"),
        ({"model": {"preset": "nothing"}}, "no preset 'nothing'"),
        ({"model": {"preset": "sac_demo_patch8_64", "width": 3}}, "has no field width"),
    ],
)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        train_config_from_dict({**_MINIMAL, **changes})


@pytest.mark.parametrize("missing", ["model", "data", "output"])
def test_what_must_be_given(missing):
    values = {key: value for key, value in _MINIMAL.items() if key != missing}
    with pytest.raises(ConfigError, match=f"{missing} is missing"):
        train_config_from_dict(values)


def test_errors_name_the_file(toml_file):
    toml_file.write_text(_TOML.replace("epochs = 6", "epochs = 0"))
    with pytest.raises(ConfigError, match=r"demo\.toml: schedule\.epochs is 0"):
        read_train_config(toml_file)


@pytest.mark.parametrize("text", ["epochs = ", 'a = "x', "a = " + "[" * 100_000])
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


@pytest.mark.parametrize("suffix", ["toml", "yaml"])
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_not_waited_for(tmp_path, suffix):
    os.mkfifo(tmp_path / f"demo.{suffix}")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_train_config(tmp_path / f"demo.{suffix}")


def test_missing_file_and_unknown_format(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_train_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"neither \.toml nor \.yaml"):
        read_train_config(tmp_path / "demo.json")


@pytest.mark.parametrize(
    ("schedule", "phases"),
    [
        ({"epochs": 3}, (2, 3 / 70)),
        ({"epochs": 350}, (200, 5)),
        ({"epochs": 700}, (400, 5)),
        ({"epochs": 3, "all_tokens_epochs": 0}, (0, 3 / 70)),
        ({"epochs": 3, "warmup_epochs": 1}, (2, 1)),
        ({"batch_size": 8}, (200, 5)),
        ({}, (200, 5)),
    ],
)
def test_phases_that_a_file_does_not_give_fit_its_epochs(schedule, phases):
    values = {
        "output": "run",
        "model": {"preset": "sac_demo_patch8_64"},
        "data": {"train": "train"},
        "schedule": schedule,
    }
    found = train_config_from_dict(values).schedule
    assert (found.all_tokens_epochs, found.warmup_epochs) == pytest.approx(phases)


def test_the_recipe_of_the_demo_network_names_weights_that_are_there():
    recipe = Path(__file__).parents[2] / "models" / "sac_demo_patch8_64.toml"
    config = read_train_config(recipe)
    assert config.init is not None
    assert config.init.is_file()


def test_the_example_trains_on_the_labelled_set_of_the_demo():
    """examples/train.toml, started in a clone after `sacvit-deploy demo --labelled labelled`."""
    root = Path(__file__).resolve().parents[2]
    config = read_train_config(root / "examples" / "train.toml")
    assert config.data.train.resolve() == root / "labelled"
    assert config.data.validation == config.data.train
    assert config.model.num_classes == len(sample_photographs().classes)
    assert config.output.resolve() == root / "runs" / "first"
