"""A run: its networks and pictures, its state on disk, and the processes that share it."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sacvit_deploy.decode import decode, encode, parse_json
from sacvit_deploy.errors import CheckpointError, ConfigError, raised_as
from sacvit_deploy.families.config import ModelConfig, preset_preprocessing
from sacvit_deploy.files import open_regular, replacing
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoints import Checkpoint
from sacvit_deploy.training.data import (
    BatchPlan,
    TrainingPictures,
    ValidationPictures,
    check_same_classes,
    open_samples,
    seed_torch,
)
from sacvit_deploy.training.objective import StagedForward, add_drop_path
from sacvit_deploy.training.optimizer import make_optimizer

if TYPE_CHECKING:
    from sacvit_deploy.training.config import OptimizerConfig, TrainConfig


# Prefixes of tensor names in a saved run, and its metadata key.
_MODEL, _AVERAGE, _OPTIMIZER = "model.", "average.", "optimizer."
_FACTS = "sacvit_deploy_run"
# Fields that may differ in a resumed run, because they do not change the result.
_FREE = ("output", "device", "tensorboard")
_FREE_IN = (("data", "workers"), ("schedule", "checkpoint_every"), ("schedule", "log_every"))
_PATHS = (("data", "train"), ("data", "validation"), ("loss", "teacher"), (None, "init"))


@dataclass(frozen=True)
class Run:
    """Everything a process needs to train.

    Attributes:
        forward: The trained network, in training mode.
        averaged: A network to measure the averaged weights with, in evaluation mode.
        teacher: A frozen dense network, or None.
    """

    state: RunState
    forward: nn.Module
    averaged: StagedForward
    teacher: nn.Module | None
    training: TrainingPictures
    validation: ValidationPictures | None
    plan: BatchPlan


def set_up(config: TrainConfig, processes: Processes) -> Run:
    """Build the networks and open the data sets of a run.

    Raises:
        DataError: A data set cannot be read, or does not fit the model or the batch size.
        CheckpointError: The initial weights or the teacher do not fit.
    """
    training, validation = _pictures(config)
    schedule, device = config.schedule, processes.device
    plan = BatchPlan(
        len(training), schedule.batch_size, schedule.accumulate, processes, config.seed
    )
    seed_torch(config.seed, "weights")
    model = build_model(config.model).to(device)
    if config.init:
        model.load_state_dict(Checkpoint.read(config.init).weights(config.model))
    averaged = StagedForward(build_model(config.model).to(device)).eval()
    add_drop_path(model, config.optimizer.drop_path)
    forward = StagedForward(model).train()
    return Run(
        RunState.fresh(model, config.optimizer),
        forward if processes.count == 1 else DistributedDataParallel(forward),
        averaged,
        _teacher(config.loss.teacher, config.model).to(device) if config.loss.teacher else None,
        training,
        validation,
        plan,
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
    """Load a dense network from a checkpoint with a stored configuration."""
    checkpoint = Checkpoint.read(path)
    found = checkpoint.config
    if found is None or found.two_stage is not None:
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
    return checkpoint.model(found).requires_grad_(requires_grad=False)


@dataclass
class RunState:
    """A run between two steps.

    Random numbers are not part of the state, since the seed and the step give them.

    Attributes:
        model: Network with the current weights.
        optimizer: AdamW over these weights.
        average: Moving average of the weights, by name.
        step: Number of steps done.
        best: Highest validation accuracy so far, in [0, 1]; None before the first validation.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    step: int = 0
    best: float | None = None

    @classmethod
    def fresh(cls, model: nn.Module, config: OptimizerConfig) -> RunState:
        """Start from the weights of a model."""
        average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        return cls(model, make_optimizer(model, config), average)


@dataclass(frozen=True)
class _Facts:
    """The metadata of a saved run: `RunState.step`, `RunState.best`, and `config_digest`."""

    step: int
    best: float | None
    config: str


def save_run(path: Path, state: RunState, config: TrainConfig) -> None:
    """Write a run atomically; an existing file is replaced.

    Raises:
        CheckpointError: The file cannot be written. The old one is unchanged.
    """
    # The optimiser's moments are called `optimizer.<parameter number>.<moment>`.
    moments: dict[int, dict[str, Tensor]] = state.optimizer.state_dict()["state"]
    tensors = {
        **{_MODEL + k: v for k, v in state.model.state_dict().items()},
        **{_AVERAGE + k: v for k, v in state.average.items()},
        **{f"{_OPTIMIZER}{i}.{k}": v for i, named in moments.items() for k, v in named.items()},
    }
    facts = encode(_Facts(state.step, state.best, config_digest(config)))
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    fix = (
        "Make space on that disk and start the same command again; it goes on from the last saved "
        "step."
    )
    problem = f"The run cannot be saved as {path}"
    told = raised_as(CheckpointError, problem, fix, (OSError, SafetensorError))
    with told, replacing(path) as unfinished:
        save_file(stored, unfinished, metadata={_FACTS: json.dumps(facts)})


def load_run(path: Path, state: RunState, config: TrainConfig) -> None:
    """Load a saved run into a fresh one.

    Raises:
        CheckpointError: The file cannot be read, or its run has another configuration.
    """
    problem, fix = f"The saved run {path} cannot be read", "Delete it to start anew."
    wrong = OSError, SafetensorError, KeyError, ConfigError
    with raised_as(CheckpointError, problem, fix, wrong):
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            facts = decode(_Facts, parse_json((file.metadata() or {})[_FACTS], "It"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if facts.config != config_digest(config):
        raise CheckpointError(
            f"{path} is a run with another configuration.",
            "Set another output folder, or delete that run to start anew.",
        )
    if {name: tensor.shape for name, tensor in tensors.items()} != _shapes(state, tensors):
        raise CheckpointError(f"{path} does not hold the tensors of its networks.", fix)
    state.model.load_state_dict(_under(_MODEL, tensors))
    for name, tensor in _under(_AVERAGE, tensors).items():
        state.average[name].copy_(tensor)
    moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in _under(_OPTIMIZER, tensors).items():
        number, _, name = key.partition(".")
        moments[int(number)][name] = tensor
    state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": moments})
    state.step, state.best = facts.step, facts.best


def _shapes(state: RunState, names: Collection[str]) -> dict[str, torch.Size]:
    """Give the shapes of all tensors of a saved run.

    A parameter that never had a gradient has no moments: they count if one of `names` is theirs.
    """
    networks = {p + k: v.shape for p in (_MODEL, _AVERAGE) for k, v in state.average.items()}
    parameters = [each for group in state.optimizer.param_groups for each in group["params"]]
    updated = {name.split(".")[1] for name in names if name.startswith(_OPTIMIZER)}
    return networks | {
        f"{_OPTIMIZER}{number}.{moment}": torch.Size() if moment == "step" else parameter.shape
        for number, parameter in enumerate(parameters)
        for moment in ("step", "exp_avg", "exp_avg_sq")
        if str(number) in updated
    }


def config_digest(config: TrainConfig) -> str:
    """Hash the fields of a configuration that decide the result of a run.

    A path counts by the file it names, however it is written.
    """
    values = encode(config)
    for section, name in _PATHS:
        part = values[section] if section else values
        part[name] = part[name] and str(Path(part[name]).resolve())
    for name in _FREE:
        del values[name]
    for section, name in _FREE_IN:
        del values[section][name]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them.

    Attributes:
        count: Number of processes, at least 1.
        rank: Number of this process, 0 to count - 1.
        device: Device of this process.
    """

    count: int
    rank: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor of any shape over all processes."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, or train in this process alone.

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
    # Imported later, as the optimiser does, it would keep the group and its threads for ever, and
    # these sometimes abort the process at its end (torch 2.13).
    importlib.import_module("torch._dynamo")
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
