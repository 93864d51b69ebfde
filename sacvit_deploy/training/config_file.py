"""A training configuration from a TOML or YAML file.

```toml
output = "runs/demo"
seed = 0

[model]
preset = "sac_demo_patch8_64"   # any other key changes a field of the preset
num_classes = 50

[data]
train = "pictures/train.zip"
validation = "pictures/val.zip"

[schedule]
epochs = 60
all_tokens_epochs = 30
```

Relative paths are taken from the folder of the file, so that a run can be started from anywhere.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sacvit_deploy._optional import require
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.model.presets import preset
from sacvit_deploy.training.config import (
    AugmentationConfig,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    section,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sacvit_deploy.spec import ModelConfig

_PARTS = {
    "augmentation": AugmentationConfig,
    "schedule": ScheduleConfig,
    "optimizer": OptimizerConfig,
    "loss": LossConfig,
}


def read_train_config(path: Path) -> TrainConfig:
    """Read and check a configuration file.

    Args:
        path: `.toml`, `.yaml` or `.yml`.

    Raises:
        ConfigError: The file cannot be read, or a value in it cannot be.
        MissingDependencyError: The parser of that format is not installed.
    """
    values = _parse(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no table.", "Write `name = value` lines and [sections].")
    try:
        config = train_config_from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.problem}", error.fix) from error
    return _resolve(config, path.parent)


def train_config_from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Build a configuration from nested plain values, as they stand in a file.

    Raises:
        ConfigError: A field is unknown, missing, of the wrong type or out of range.
    """
    rest = dict(values)
    for name in ("model", "data", "output"):
        if name not in rest:
            raise ConfigError(f"{name!r} is missing.", "Give at least model, data and output.")
    for name in ("model", "data", *_PARTS):
        if not isinstance(rest.get(name, {}), dict):
            raise ConfigError(f"{name!r} is no table.", f"Write a [{name}] section.")
    parts: dict[str, Any] = {
        name: section(kind, rest.pop(name), name) for name, kind in _PARTS.items() if name in rest
    }
    parts["model"] = _model(rest.pop("model"))
    parts["data"] = section(DataConfig, rest.pop("data"), "data")
    return section(TrainConfig, {**rest, **parts}, "the file")


def _model(values: dict[str, Any]) -> ModelConfig:
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    name = fields.pop("preset", None)
    if not isinstance(name, str):
        raise ConfigError("[model] names no preset.", "Write preset = NAME; other keys change it.")
    return preset(name).replace(**fields)


def _parse(path: Path) -> object:
    suffix = path.suffix.lower()
    try:
        if suffix == ".toml":
            module = "tomllib" if sys.version_info >= (3, 11) else "tomli"
            toml = require(module, "Reading a .toml configuration")
            return toml.loads(path.read_text(encoding="utf-8"))
        if suffix in (".yaml", ".yml"):
            yaml = require("yaml", "Reading a .yaml configuration")
            return _parse_yaml(yaml, path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", "Check the file.") from error
    raise ConfigError(f"{path} is neither .toml nor .yaml.", "Name a .toml or .yaml file.")


def _parse_yaml(yaml: Any, path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}.", "Correct that line.") from error


def _resolve(config: TrainConfig, folder: Path) -> TrainConfig:
    """Anchor every relative path at the folder of the file; absolute ones stay."""
    validation, teacher, init = config.data.validation, config.loss.teacher, config.init
    data = dataclasses.replace(
        config.data,
        train=folder / config.data.train,
        validation=folder / validation if validation else None,
    )
    loss = dataclasses.replace(config.loss, teacher=folder / teacher if teacher else None)
    return dataclasses.replace(
        config,
        data=data,
        loss=loss,
        output=folder / config.output,
        init=folder / init if init else None,
    )
