"""One process or several: what torchrun says, and the few collective operations that are needed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sacvit_deploy.errors import CheckpointError, ConfigError
from sacvit_deploy.families.config import preset_preprocessing
from sacvit_deploy.files import replacing
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoints import load_weights, read_config
from sacvit_deploy.training.data import (
    BatchPlan,
    TrainingPictures,
    ValidationPictures,
    check_same_classes,
    open_samples,
    seed_torch,
)
from sacvit_deploy.training.objective import RecipeLoss, StagedForward, add_drop_path
from sacvit_deploy.training.optimizer import AveragedWeights, make_optimizer

if TYPE_CHECKING:
    from pathlib import Path

    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.training.config import TrainConfig


@dataclass(frozen=True)
class Processes:
    """How many processes train together, and which one this is.

    Attributes:
        count: At least 1.
        rank: 0 to count - 1; the first one writes files.
        device: Where this one computes.
    """

    count: int
    rank: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Average the gradients over all processes, where there are several."""
        if self.count == 1:
            return module
        return DistributedDataParallel(module)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes of a tensor of any shape."""
        return self.sum(values) / self.count

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor of any shape."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started; alone without it.

    Args:
        device: `auto`, or a torch device such as `cpu` or `cuda:1`.

    Raises:
        ConfigError: The device does not exist.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = _device(device)
    if count == 1:
        yield Processes(1, 0, chosen)
        return
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(count, rank, chosen)
    finally:
        distributed.destroy_process_group()


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            local = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"The device {name!r} cannot be used: {reason}", 'Set device = "auto" or "cpu".'
        ) from error
    return device


_MODEL, _AVERAGE, _OPTIMIZER = "model.", "average.", "optimizer."
_FACTS = "sacvit_deploy_run"
# What may differ between a run and its continuation: it does not change the result.
_FREE = {"output", "device", "tensorboard"}


@dataclass
class RunState:
    """A run between two steps.

    Random numbers are no part of it: they are derived from the seed and the step.

    Attributes:
        model: With the weights of now.
        optimizer: AdamW over them.
        average: Moving average of the weights.
        step: How many steps were done.
        best: Highest validated share of right answers so far, and None before the first.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedWeights
    step: int = 0
    best: float | None = None


def config_digest(config: TrainConfig) -> str:
    """Of what decides the result, so that a run is not continued under another recipe."""
    values = {key: value for key, value in config.to_dict().items() if key not in _FREE}
    values["data"] = {k: v for k, v in values["data"].items() if k != "workers"}
    pace = ("checkpoint_every", "log_every")
    values["schedule"] = {k: v for k, v in values["schedule"].items() if k not in pace}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def save_run(path: Path, state: RunState, config: TrainConfig) -> None:
    """Write a run; a file that exists is replaced in one instant.

    Raises:
        CheckpointError: The file cannot be written; the one from before is unchanged.
    """
    tensors = {
        **{_MODEL + k: v for k, v in state.model.state_dict().items()},
        **{_AVERAGE + k: v for k, v in state.average.weights.items()},
        **_optimizer_tensors(state),
    }
    facts = {"step": state.step, "best": state.best, "config": config_digest(config)}
    try:
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with replacing(path) as unfinished:
            save_file(stored, unfinished, metadata={_FACTS: json.dumps(facts)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The run cannot be saved as {path}: {error}.",
            "Make space on that disk and start the same command again; it goes on from the last "
            "saved step.",
        ) from error


def load_run(path: Path, state: RunState, config: TrainConfig) -> None:
    """Bring a fresh run to where a saved one was.

    Raises:
        CheckpointError: The file is unreadable, or of a run with another configuration.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_FACTS])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"The saved run {path} cannot be read: {error}.", "Delete it to start anew."
        ) from error
    if facts["config"] != config_digest(config):
        raise CheckpointError(
            f"{path} is a run with another configuration.",
            "Set another output folder, or delete that run to start anew.",
        )
    state.model.load_state_dict(_under(_MODEL, tensors))
    for name, tensor in _under(_AVERAGE, tensors).items():
        state.average.weights[name].copy_(tensor)
    _load_optimizer(state, _under(_OPTIMIZER, tensors))
    state.step, state.best = facts["step"], facts["best"]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _optimizer_tensors(state: RunState) -> dict[str, Tensor]:
    """The optimiser's moments as `optimizer.<parameter number>.<moment>`."""
    moments: dict[int, dict[str, Any]] = state.optimizer.state_dict()["state"]
    return {
        f"{_OPTIMIZER}{number}.{name}": tensor
        for number, values in moments.items()
        for name, tensor in values.items()
    }


def _load_optimizer(state: RunState, tensors: dict[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        moments.setdefault(int(number), {})[name] = tensor
    whole = state.optimizer.state_dict()
    state.optimizer.load_state_dict({**whole, "state": moments})


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
