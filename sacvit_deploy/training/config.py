"""One training run as one frozen value, validated when born."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

from sacvit_deploy.decode import check_field, check_types
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import ModelConfig, preset
from sacvit_deploy.libraries import require

if TYPE_CHECKING:
    from collections.abc import Mapping


_T = TypeVar("_T")


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures are.

    Attributes:
        train: DATA to learn from: a folder of class folders, a zip of one, or a table.
        validation: DATA of the same classes to measure on; None measures nothing.
        workers: Processes that read and augment; 0 reads in the training process. The result does
            not depend on it.
        on_corrupt: What to do at a picture that cannot be read: `stop` with its name, or `skip`:
            report its name and take the next picture in its place.
    """

    train: Path
    validation: Path | None = None
    workers: int = 0
    on_corrupt: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        check_types(self)
        check_field(self.workers >= 0, "data.workers", self.workers, "0 or more")


@dataclass(frozen=True)
class AugmentationConfig:
    """DeiT's augmentation (Touvron et al. 2021, table 9); 0 switches a part off.

    Attributes:
        crop_scale: Smallest share of the picture a random crop covers, in (0, 1].
        flip: Probability of a mirror image.
        rand_augment_ops: RandAugment operations applied to each picture.
        rand_augment_magnitude: Their mean strength, 0 to 10; it varies with deviation 0.5.
        erasing: Probability that a rectangle is replaced by noise.
        mixup: Parameter of the beta distribution of mixup.
        cutmix: Parameter of the beta distribution of cutmix; with both, each batch takes one.
    """

    crop_scale: float = 0.08
    flip: float = 0.5
    rand_augment_ops: int = 2
    rand_augment_magnitude: float = 9.0
    erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0

    def __post_init__(self) -> None:
        check_field(
            0 < self.crop_scale <= 1, "augmentation.crop_scale", self.crop_scale, "in (0, 1]"
        )
        for name in ("flip", "erasing"):
            value = getattr(self, name)
            check_field(0 <= value <= 1, f"augmentation.{name}", value, "in [0, 1]")
        for name in ("rand_augment_ops", "mixup", "cutmix"):
            value = getattr(self, name)
            check_field(value >= 0, f"augmentation.{name}", value, "0 or more")
        magnitude = self.rand_augment_magnitude
        check_field(
            0 <= magnitude <= 10, "augmentation.rand_augment_magnitude", magnitude, "in [0, 10]"
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """How long, in which phases and in which steps.

    Attributes:
        epochs: Passes over the training pictures.
        all_tokens_epochs: First phase: stage 2 sees all fine tokens and attends jointly. Then
            clustering is switched on. Plays no part for a dense model.
        batch_size: Pictures of one optimiser step, over all processes.
        accumulate: Parts a step's batch is computed in, to save memory.
        warmup_epochs: Epochs in which the learning rate rises linearly.
        validate_every: Epochs between two validations.
        checkpoint_every: Steps between two checkpoints; one is written after every epoch too.
        log_every: Steps between two lines of training metrics.
    """

    epochs: int = 350
    all_tokens_epochs: int = 200
    batch_size: int = 1024
    accumulate: int = 1
    warmup_epochs: float = 5.0
    validate_every: int = 1
    checkpoint_every: int = 1000
    log_every: int = 50

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "accumulate")
        for name in (*counts, "validate_every", "checkpoint_every", "log_every"):
            check_field(
                getattr(self, name) >= 1, f"schedule.{name}", getattr(self, name), "1 or more"
            )
        phase = self.all_tokens_epochs
        fits = 0 <= phase <= self.epochs
        check_field(fits, "schedule.all_tokens_epochs", phase, f"0 to {self.epochs}, the epochs")
        warm = self.warmup_epochs
        check_field(0 <= warm <= self.epochs, "schedule.warmup_epochs", warm, f"0 to {self.epochs}")
        divides = self.batch_size % self.accumulate == 0
        wanted = f"a divisor of batch_size {self.batch_size}"
        check_field(divides, "schedule.accumulate", self.accumulate, wanted)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as DeiT uses it.

    Attributes:
        learning_rate: At the peak, for 512 pictures a step; it scales with the batch size.
        min_learning_rate: At the end of the cosine, not scaled.
        weight_decay: On matrices; vectors, tables and the class token have none.
        betas: Of the two moving averages.
        clip_norm: Largest norm of the gradient; 0 does not clip.
        ema_decay: Of the moving average of the weights that is validated and kept; 0 keeps none.
        drop_path: Probability of dropping a residual branch in the last block.
        layer_decay: The learning rate falls by this factor from each block to the one before it
            (Clark et al. 2020; Bao et al. 2022), for networks that start from trained weights; 1
            gives all layers the same.
        precision: Of the forward pass; weights and optimiser stay float32. `bfloat16` is for GPUs
            and for CPUs with instructions for it; on others it is many times as slow.
    """

    learning_rate: float = 5e-4
    min_learning_rate: float = 1e-5
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 0.0
    ema_decay: float = 0.99996
    drop_path: float = 0.1
    layer_decay: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_types(self)
        rate = self.learning_rate
        check_field(rate > 0, "optimizer.learning_rate", rate, "positive")
        for name in ("min_learning_rate", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            check_field(value >= 0, f"optimizer.{name}", value, "0 or more")
        for name in ("ema_decay", "drop_path"):
            value = getattr(self, name)
            check_field(0 <= value < 1, f"optimizer.{name}", value, "in [0, 1)")
        decay = self.layer_decay
        check_field(0 < decay <= 1, "optimizer.layer_decay", decay, "in (0, 1]")


@dataclass(frozen=True)
class LossConfig:
    """What is minimised.

    Attributes:
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        early_exit: What the first stage learns from: `kl`, the second stage's answer (the paper),
            or `ce`, the label (its ablation).
        early_exit_weight: Weight of that term.
        teacher: Checkpoint of a trained dense model whose answers are distilled; None for none.
        teacher_weight: Share of the target that comes from the teacher, in [0, 1].
        teacher_temperature: Softens both answers in the distillation.
    """

    label_smoothing: float = 0.1
    early_exit: Literal["kl", "ce"] = "kl"
    early_exit_weight: float = 1.0
    teacher: Path | None = None
    teacher_weight: float = 0.5
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        smoothing = self.label_smoothing
        check_field(0 <= smoothing < 1, "loss.label_smoothing", smoothing, "in [0, 1)")
        weight = self.early_exit_weight
        check_field(weight >= 0, "loss.early_exit_weight", weight, "0 or more")
        share = self.teacher_weight
        check_field(0 <= share <= 1, "loss.teacher_weight", share, "in [0, 1]")
        warm = self.teacher_temperature
        check_field(warm > 0, "loss.teacher_temperature", warm, "positive")


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Two runs of one config on one machine end in the same weights.

    Attributes:
        model: The network.
        data: Pictures.
        output: Folder of the checkpoints and the metrics.
        seed: Of the first weights and of every draw afterwards.
        init: Checkpoint to start from, in any layout `load_checkpoint` reads; None starts from
            random weights.
        device: `auto` takes the GPU where there is one, else `cpu`; or a torch device.
        tensorboard: Also write TensorBoard event files.
        augmentation: How pictures are varied.
        schedule: How long.
        optimizer: How weights move.
        loss: What is minimised.
    """

    model: ModelConfig
    data: DataConfig
    output: Path
    seed: int = 0
    init: Path | None = None
    device: str = "auto"
    tensorboard: bool = False
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        check_field(self.seed >= 0, "seed", self.seed, "0 or more")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping, paths as text."""
        values: dict[str, Any] = _plain(dataclasses.asdict(self))
        return values


def section(kind: type[_T], values: Mapping[str, Any], name: str) -> _T:
    """Build one part of the configuration from plain values.

    Args:
        kind: The dataclass.
        values: Its fields; numbers, texts, lists.
        name: What the part is called in errors.

    Raises:
        ConfigError: A field is unknown, missing, of the wrong type or out of range.
    """
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(
            f"Unknown field in [{name}]: {', '.join(unknown)}.",
            f"Known fields: {', '.join(sorted(fields))}.",
        )
    built = {key: _value(hints[key], value, f"{name}.{key}") for key, value in values.items()}
    try:
        return kind(**built)
    except TypeError as error:
        raise ConfigError(f"[{name}] is incomplete: {error}.", "Add the missing field.") from error


def _value(hint: Any, value: Any, name: str) -> Any:
    """Check the type of one value; integers serve as floats, texts as paths, lists as tuples."""
    if hint in (Path, Path | None):
        check_field(isinstance(value, str | Path), name, value, "a path")
        return Path(value)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        check_field(number, name, value, "a number")
        return float(value)
    if hint in (int, bool, str):
        check_field(type(value) is hint, name, value, f"a value of type {hint.__name__}")
        return value
    if hint == tuple[float, float]:
        check_field(isinstance(value, list | tuple) and len(value) == 2, name, value, "two numbers")
        return tuple(float(v) for v in value)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, Path) else value


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
