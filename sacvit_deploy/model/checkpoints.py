"""Checkpoints: weights of a file or of a state dict, and the networks that they fit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sacvit_deploy.decode import check_field, decode, encode, parse_json
from sacvit_deploy.errors import CheckpointError, ConfigError, raised_as
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.files import replacing
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoint_files import (
    CONFIG_METADATA,
    LENGTH_BYTES,
    check_claim,
    read_bytes,
    stored_tensors,
)
from sacvit_deploy.model.checkpoint_fit import check_finite, check_fit, check_stored, shortened
from sacvit_deploy.model.layouts import to_own_layout
from sacvit_deploy.records import WeightsOrigin

if TYPE_CHECKING:
    from sacvit_deploy.model.vision_model import VisionModel


_WRAPPERS = re.compile(r"(module\.|model\.)+")
_COMPILED = "_orig_mod."
_AVERAGE_COUNTER = "n_averaged"

_STATE_DICT = "The state dict"
_LONGEST_CONFIG = 1 << 16
_FLOATING = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


@dataclass(frozen=True)
class Checkpoint:
    """The content of one checkpoint file, read once, or of a state dict in memory.

    Attributes:
        path: The file; None for a state dict.
        sha256: Hash of its bytes; empty for a state dict.
        tensors: By the file's names without wrapper prefixes; floating tensors are float32.
        config: Configuration stored by `save_checkpoint`, if any.
        label: What to call a state dict.
    """

    path: Path | None
    sha256: str
    tensors: dict[str, Tensor]
    config: ModelConfig | None
    label: str = ""

    @classmethod
    def of_state_dict(cls, state_dict: Mapping[str, Tensor], label: str = "") -> Checkpoint:
        """Make one of a state dict.

        Raises:
            CheckpointError: A value is not a plain array of numbers, or two have one name.
        """
        wrong = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
        if wrong:
            raise CheckpointError(
                f"{_STATE_DICT} holds {type(state_dict[wrong[0]]).__name__} for {wrong[0]!r}.",
                "Give a mapping of names to tensors, as `model.state_dict()` returns it.",
            )
        size = sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
        return cls(None, "", _unwrapped(state_dict, Path(label or _STATE_DICT), size), None, label)

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read a safetensors file or a file written by `torch.save`.

        The state dict may be stored under `model`, `state_dict`, `model_state_dict`, `module`,
        `model_ema` or `state_dict_ema`. The first of these wins.

        Raises:
            CheckpointError: The file cannot be read, is damaged, too large or not a checkpoint,
                holds objects whose construction would run code or tensors that are no plain
                arrays of numbers, or its stored configuration is not that of its weights.
        """
        data = read_bytes(path)
        sha256 = hashlib.sha256(data).hexdigest()
        tensors, text = stored_tensors(data, path)
        tensors = _unwrapped(tensors, path, len(data))
        config = None if text is None else _stored_config(text, tensors, path)
        return cls(path, sha256, tensors, config)

    @property
    def origin(self) -> WeightsOrigin:
        """The bundle's record of where its weights came from."""
        if self.path is None:
            return WeightsOrigin("model", file=self.label or "a model in memory")
        return WeightsOrigin("checkpoint", file=self.path.name, sha256=self.sha256)

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path or self.label or _STATE_DICT)

    def weights(self, config: ModelConfig) -> dict[str, Tensor]:
        """Bring the tensors to the layout of a model.

        Known are the names of this package, of CF-ViT and LF-ViT, and of DeiT and timm. Position
        tables of another resolution are interpolated. A dense DeiT becomes the start of a two-stage
        network.

        Args:
            config: Model that will load the weights.

        Returns:
            A float32 state dict on the CPU that `build_model(config)` loads strictly.

        Raises:
            CheckpointError: The weights do not fit the model or are not finite. Every key that does
                not fit is named.
        """
        try:
            state = to_own_layout(self.tensors, config, self.config)
        except CheckpointError as error:
            raise CheckpointError(f"{self.name}: {error.problem}", error.fix) from error
        check_fit(state, config, self.name)
        check_finite(self.tensors, self.name)
        return state

    def model(self, config: ModelConfig) -> VisionModel:
        """Build a network with these weights, in evaluation mode.

        Raises:
            CheckpointError: See `weights`.
        """
        weights = self.weights(config)
        model = build_model(config)
        model.load_state_dict(weights, strict=True)
        return model.eval()


def save_checkpoint(path: Path, state_dict: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Write weights and their configuration as one safetensors file, atomically.

    Args:
        path: The file; an existing one is replaced.
        state_dict: Weights in this package's layout, on any device, of any floating dtype.
        config: Configuration of their model, stored as JSON in the metadata.

    Raises:
        CheckpointError: The file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    metadata = {"format": "pt", CONFIG_METADATA: json.dumps(encode(config))}
    problem = f"The checkpoint {path} cannot be written"
    fix = "Check that its folder exists, may be written to, and has space left."
    told = raised_as(CheckpointError, problem, fix, (OSError, SafetensorError))
    with told, replacing(path) as unfinished:
        save_file(tensors, unfinished, metadata=metadata)
        _sort_metadata(unfinished)


def _sort_metadata(path: Path) -> None:
    """Order a safetensors header's metadata by key, so that equal checkpoints are equal files."""
    with path.open("rb+") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # else it would end in the first tensor; any order can be read
            stream.seek(LENGTH_BYTES)
            stream.write(text.ljust(length))


def _stored_config(text: str, tensors: Mapping[str, Tensor], path: Path) -> ModelConfig:
    """Decode a stored configuration and compare it with the weights beside it."""
    try:
        length = len(text)
        check_field(length <= _LONGEST_CONFIG, "its length", length, f"{_LONGEST_CONFIG} or less")
        config = decode(ModelConfig, parse_json(text, "It"), "config", refuse_unknown=True)
        check_stored(tensors, config)
    except (ValueError, OverflowError, RecursionError, ConfigError) as error:
        problem = error.problem if isinstance(error, ConfigError) else str(error)
        raise CheckpointError(
            f"The model configuration stored in {path} cannot be used: {shortened(problem, 600)}",
            "Write the checkpoint again with this release.",
        ) from error
    return config


def _unwrapped(tensors: Mapping[str, Tensor], path: Path, size: int) -> dict[str, Tensor]:
    """Check that tensors are plain arrays that a file of `size` bytes can hold, and rename them.

    DDP, torch.compile and Lightning add prefixes to every name; these are removed.
    """
    for name, tensor in tensors.items():
        _check_plain(name, tensor, path)
    check_claim(sum(t.numel() * t.element_size() for t in tensors.values()), size, path)
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = name.replace(_COMPILED, "")
        wrapped = _WRAPPERS.match(bare)
        bare = bare[wrapped.end() :] if wrapped else bare
        if bare == _AVERAGE_COUNTER:
            continue
        if bare in result:
            raise CheckpointError(
                f"{path} holds two tensors for {shortened(bare)}, one of them as "
                f"{shortened(name)}.",
                "Write one of the two models to a file of its own.",
            )
        values = tensor.detach()
        result[bare] = values.to(torch.float32) if values.is_floating_point() else values
    return result


def _check_plain(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse tensors that have no values in memory, one for each element."""
    found = str(tensor.layout).removeprefix("torch.")
    if tensor.device.type != "cpu":
        found = tensor.device.type
    elif tensor.is_quantized or tensor.is_nested:
        found = "quantised" if tensor.is_quantized else "nested"
    elif tensor.is_floating_point() and tensor.dtype not in _FLOATING:
        found = str(tensor.dtype).removeprefix("torch.")
    if found != "strided":
        raise CheckpointError(
            f"{shortened(name)} in {path} is a {found} tensor, not a plain array of numbers.",
            "Convert it before it is saved: dequantize() or to_dense(), on the CPU, in float32.",
        )
