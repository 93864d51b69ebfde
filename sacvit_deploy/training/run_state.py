"""Everything a run needs to go on: one safetensors file that appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sacvit_deploy.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from sacvit_deploy.training.config import TrainConfig
    from sacvit_deploy.training.optimizer import AveragedWeights

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
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(stored, unfinished, metadata={_FACTS: json.dumps(facts)})
        with unfinished.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The run cannot be saved as {path}: {error}.",
            "Make space on that disk and start the same command again; it goes on from the last "
            "saved step.",
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


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
