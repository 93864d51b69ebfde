"""Models of timm by their names: weights, and how they want their pictures.

timm is not needed for anything else. What is used of it is as in timm 1.0: `is_model`,
`list_models`, `create_model`, and `pretrained_cfg` of a model.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.exporters.preprocessing import PreprocessingRequest, request_of_timm
from sacvit_deploy.model.checkpoints import Checkpoint

_ON_HUB = ("hf-hub:", "hf_hub:")
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
_SUFFIXES = frozenset({".bin", ".ckpt", ".onnx", ".pt", ".pth", ".safetensors", ".tar", ".zip"})
_FIX = "Name a checkpoint file, or a model of timm.list_models()."


class Source(NamedTuple):
    """Weights, and the preprocessing that was published with them."""

    checkpoint: Checkpoint
    preprocessing: PreprocessingRequest


def read_source(path: Path) -> Source:
    """Read a checkpoint file, or a model of timm where there is no file of that name.

    timm downloads the weights, or takes those that it downloaded before.

    Args:
        path: A file; or a name such as `deit_small_patch16_224.fb_in1k` or `hf-hub:timm/...`.

    Raises:
        CheckpointError: The file cannot be read; or there is none, and timm is missing, cannot be
            imported, does not know the name, or cannot get the weights.
        ConfigError: The preprocessing of the model is not offered.
    """
    name = str(path)
    if os.path.exists(name) or not _may_be_model(name):
        return Source(Checkpoint.read(path), PreprocessingRequest())
    timm = _timm(name)
    _check_known(timm, name)
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # its own, those of the hub, and those of the network
        raise CheckpointError(
            f"timm {timm.__version__} could not load the weights of {name}: {_in_a_line(error)}.",
            "Check the name and the connection, or name a checkpoint file.",
        ) from error
    label = f"{name} of timm {timm.__version__}"
    checkpoint = Checkpoint.of_state_dict(model.state_dict(), label)
    return Source(checkpoint, request_of_timm(model.pretrained_cfg))


def _may_be_model(name: str) -> bool:
    if name.startswith(_ON_HUB):
        return True
    return _NAME.fullmatch(name) is not None and Path(name).suffix.lower() not in _SUFFIXES


def _timm(name: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise _broken(name, error) from error
        raise CheckpointError(
            f"There is no file {name}; and timm, which may know a model of that name, is not "
            "installed.",
            "Check the path; or for a model of timm: pip install timm",
        ) from error
    except Exception as error:  # a torchvision for another torch raises several kinds
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"There is no file {name}; and timm, which may know a model of that name, cannot be "
        f"imported: {_in_a_line(error)}.",
        "Check the path; or install the torchvision that belongs to this torch. timm needs it.",
    )


def _check_known(timm: Any, name: str) -> None:
    if name.startswith(_ON_HUB) or timm.is_model(name):
        return
    architecture = name.partition(".")[0]
    near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
    raise CheckpointError(
        f"There is no file {name}, and timm {timm.__version__} has no model of that name.",
        f"Did you mean {', '.join(near)}?" if near else _FIX,
    )


def _in_a_line(error: Exception) -> str:
    """The message without the advice that libraries add in further lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
