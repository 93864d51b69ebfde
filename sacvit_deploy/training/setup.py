"""Everything a run works with, built from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.model.checkpoints import load_weights, read_config
from sacvit_deploy.model.presets import preset_preprocessing
from sacvit_deploy.model.two_stage import build_model
from sacvit_deploy.training.batches import BatchPlan
from sacvit_deploy.training.draws import seed_torch
from sacvit_deploy.training.drop_path import add_drop_path
from sacvit_deploy.training.losses import RecipeLoss
from sacvit_deploy.training.optimizer import AveragedWeights, make_optimizer
from sacvit_deploy.training.pictures import (
    TrainingPictures,
    ValidationPictures,
    check_same_classes,
    open_samples,
)
from sacvit_deploy.training.run_state import RunState
from sacvit_deploy.training.stages import StagedForward

if TYPE_CHECKING:
    from pathlib import Path

    from sacvit_deploy.spec import ModelConfig
    from sacvit_deploy.training.config import TrainConfig
    from sacvit_deploy.training.distributed import Processes


@dataclass
class Workbench:
    """What the loop needs at hand.

    Attributes:
        state: The run, at its first step.
        forward: The network as the optimiser's steps call it, in training mode.
        judge: A second network, which takes the averaged weights to be measured.
        teacher: A frozen dense network, or None.
        loss: The recipe's loss.
        training: Varied pictures.
        validation: Unvaried pictures, or None.
        plan: How epochs are divided.
        processes: Who trains together.
    """

    state: RunState
    forward: nn.Module
    judge: StagedForward
    teacher: nn.Module | None
    loss: RecipeLoss
    training: TrainingPictures
    validation: ValidationPictures | None
    plan: BatchPlan
    processes: Processes


def set_up(config: TrainConfig, processes: Processes) -> Workbench:
    """Build the networks and open the data sets.

    Raises:
        DataError: A data set cannot be read or does not fit the model or the batch size.
        CheckpointError: The first weights or the teacher's do not fit.
    """
    training, validation = _pictures(config)
    schedule = config.schedule
    plan = BatchPlan(
        len(training), schedule.batch_size, schedule.accumulate, processes, config.seed
    )
    seed_torch(config.seed, "weights")
    model = build_model(config.model).to(processes.device)
    if config.init:
        load_weights(model, config.init)
    judge = StagedForward(build_model(config.model).to(processes.device)).eval()
    add_drop_path(model, config.optimizer.drop_path)
    average = AveragedWeights(model.state_dict(), config.optimizer.ema_decay)
    return Workbench(
        RunState(model, make_optimizer(model, config.optimizer), average),
        processes.wrap(StagedForward(model).train()),
        judge,
        _teacher(config.loss.teacher, config.model).to(processes.device)
        if config.loss.teacher
        else None,
        RecipeLoss(config.loss),
        training,
        validation,
        plan,
        processes,
    )


def _pictures(config: TrainConfig) -> tuple[TrainingPictures, ValidationPictures | None]:
    spec = preset_preprocessing(config.model)
    classes = config.model.num_classes
    samples = open_samples(config.data.train, classes)
    training = TrainingPictures(samples, spec, config)
    if config.data.validation is None:
        return training, None
    held_out = open_samples(config.data.validation, classes)
    check_same_classes(samples, held_out, config.data.validation)
    return training, ValidationPictures(held_out, spec)


def _teacher(path: Path, model: ModelConfig) -> nn.Module:
    """A dense network whose checkpoint says what it is."""
    found = read_config(path)
    if found is None or found.family != "vit":
        raise CheckpointError(
            f"The teacher {path} is not a dense network saved by this package.",
            "Train or convert a dense baseline first and give its checkpoint.",
        )
    if (found.image_size, found.num_classes) != (model.image_size, model.num_classes):
        raise CheckpointError(
            f"The teacher {path} takes {found.image_size} and knows {found.num_classes} classes; "
            f"the model takes {model.image_size} and learns {model.num_classes}.",
            "Give a teacher of the same image size and classes.",
        )
    teacher = build_model(found)
    load_weights(teacher, path)
    return teacher.eval().requires_grad_(requires_grad=False)
