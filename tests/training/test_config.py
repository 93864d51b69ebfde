from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.training.config import (
    AugmentationConfig,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


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
    document = json.loads(json.dumps(run.to_dict()))
    assert document["schedule"]["epochs"] == 3
    assert document["data"]["train"] == str(run.data.train)
