"""A data set of 24 small pictures in three classes, and a run on it that takes a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.svit import GateConfig
from sacvit_deploy.families.two_stage import TwoStageConfig
from sacvit_deploy.training.config import (
    AugmentationConfig,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)

TINY = ModelConfig(
    "sac_vit",
    (16, 16),
    4,
    16,
    2,
    2,
    num_classes=3,
    two_stage=TwoStageConfig(score_first_block=1),
)
_JOINT = {"target_rounding": "ceil", "exit_comparison": ">=", "attention": "joint"}
TINY_LF = TINY.replace(family="lf_vit", window=2, **_JOINT)
TINY_CF_LV = TINY.replace(
    family="cf_lv_vit",
    stem="conv",
    qkv_bias=False,
    residual_scale=0.5,
    aux_weight=0.25,
    layer_norm_eps=1e-5,
    **_JOINT,
)
TINY_DENSE = ModelConfig("vit", (16, 16), 4, 16, 2, 2, num_classes=3)
TINY_GATED = TINY_DENSE.replace(family="svit", gates=GateConfig(first_block=1))
QUIET = AugmentationConfig(crop_scale=0.8, rand_augment_ops=0, erasing=0.0, mixup=0.0, cutmix=0.0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_pictures(folder: Path, each: int, seed: int) -> Path:
    """Three classes that differ in colour."""
    generator = np.random.default_rng(seed)
    for index, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(0, 120, (20, 24, 3), dtype=np.uint8)
            pixels[..., 2 - index] += 130
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def train_folder(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("train"), 8, seed=0)


@pytest.fixture(scope="session")
def validation_folder(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("validation"), 4, seed=1)


def tiny_run(train_folder: Path, validation_folder: Path, output: Path) -> TrainConfig:
    """Three epochs of four steps; clustering from the second epoch on."""
    return TrainConfig(
        TINY,
        DataConfig(train_folder, validation_folder),
        output,
        schedule=ScheduleConfig(
            epochs=3,
            all_tokens_epochs=1,
            batch_size=6,
            warmup_epochs=1,
            checkpoint_every=1,
            log_every=1,
        ),
        optimizer=OptimizerConfig(learning_rate=0.05, ema_decay=0.5),
    )


@pytest.fixture
def run(train_folder, validation_folder, tmp_path) -> TrainConfig:
    return tiny_run(train_folder, validation_folder, tmp_path / "run")


@pytest.fixture
def quiet_run(run: TrainConfig) -> TrainConfig:
    """Without what differs between the shares of a batch: mixing and dropped branches."""
    return dataclasses.replace(
        run,
        augmentation=QUIET,
        optimizer=dataclasses.replace(run.optimizer, drop_path=0.0),
    )
