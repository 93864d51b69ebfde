"""Configuration of a training run, from a TOML or YAML file."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from sacvit_deploy.decode import check_field, check_types, decode, read_bounded, shown
from sacvit_deploy.errors import ConfigError, raised_as
from sacvit_deploy.families.config import ModelConfig, number_of_classes, preset
from sacvit_deploy.libraries import require

_IN_RANGE: dict[str, Callable[[float], bool]] = {
    "positive": lambda value: value > 0,
    "0 or more": lambda value: value >= 0,
    "1 or more": lambda value: value >= 1,
    "in (0, 1]": lambda value: 0 < value <= 1,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "in [0, 1]": lambda value: 0 <= value <= 1,
    "in [0, 10]": lambda value: 0 <= value <= 10,
}
_NotNegative = Annotated[float, "0 or more"]
_Positive = Annotated[float, "positive"]
_Count = Annotated[int, "1 or more"]
_Share = Annotated[float, "in [0, 1]"]


class _Section:
    """A section of the file. The annotation of a field may name a range of `_IN_RANGE`."""

    def __post_init__(self) -> None:
        check_types(self)
        section = type(self).__name__.removesuffix("Config").lower()
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            for wanted in getattr(hint, "__metadata__", ()):
                check_field(_IN_RANGE[wanted](value), f"{section}.{name}", value, wanted)


@dataclass(frozen=True)
class DataConfig(_Section):
    """The pictures.

    Attributes:
        train: Training pictures: a folder of class folders, a zip of one, or a table.
        validation: Validation pictures of the same classes; None skips validation.
        workers: Number of processes that read and augment; 0 reads in the training process. The
            result does not depend on it.
        on_corrupt: Handling of a training picture that cannot be read: `stop` with its name, or
            `skip`: warn with its name and use the next picture.
    """

    train: Path
    validation: Path | None = None
    workers: Annotated[int, "0 or more"] = 0
    on_corrupt: Literal["stop", "skip"] = "stop"


@dataclass(frozen=True)
class AugmentationConfig(_Section):
    """DeiT's augmentation (Touvron et al. 2021, table 9); 0 switches a part off.

    Attributes:
        crop_scale: Smallest share of the picture that a random crop covers, in (0, 1].
        flip: Probability of mirroring.
        rand_augment_ops: Number of RandAugment operations per picture.
        rand_augment_magnitude: Mean strength of these operations, 0 to 10; the deviation is 0.5.
        erasing: Probability of replacing a rectangle by noise.
        mixup: Parameter of mixup's beta distribution.
        cutmix: Parameter of cutmix's beta distribution. With both, each batch uses one.
    """

    crop_scale: Annotated[float, "in (0, 1]"] = 0.08
    flip: _Share = 0.5
    rand_augment_ops: Annotated[int, "0 or more"] = 2
    rand_augment_magnitude: Annotated[float, "in [0, 10]"] = 9.0
    erasing: _Share = 0.25
    mixup: _NotNegative = 0.8
    cutmix: _NotNegative = 1.0


@dataclass(frozen=True)
class ScheduleConfig(_Section):
    """The length of a run, its phases and its steps.

    Attributes:
        epochs: Passes over the training pictures.
        all_tokens_epochs: Epochs of the first phase, which refines all tokens with joint attention.
            Clustering starts after it. A dense network ignores it. A file with other epochs and
            without this has the same share of them, 4 of 7.
        batch_size: Pictures of one optimiser step, over all processes.
        accumulate: Parts that each batch is computed in, to save memory.
        warmup_epochs: Epochs in which the learning rate rises linearly; in a file with fewer epochs
            and without this, the same share, 1 of 70.
        validate_every: Epochs between validations.
        checkpoint_every: Steps between saved states. Each epoch saves one too.
        log_every: Steps between lines of training metrics.
    """

    epochs: _Count = 350
    all_tokens_epochs: int = 200
    batch_size: _Count = 1024
    accumulate: _Count = 1
    warmup_epochs: float = 5.0
    validate_every: _Count = 1
    checkpoint_every: _Count = 1000
    log_every: _Count = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        phase, warm = self.all_tokens_epochs, self.warmup_epochs
        fits = 0 <= phase <= self.epochs
        check_field(fits, "schedule.all_tokens_epochs", phase, f"0 to {self.epochs}, the epochs")
        check_field(0 <= warm <= self.epochs, "schedule.warmup_epochs", warm, f"0 to {self.epochs}")
        divides = self.batch_size % self.accumulate == 0
        wanted = f"a divisor of batch_size {self.batch_size}"
        check_field(divides, "schedule.accumulate", self.accumulate, wanted)


@dataclass(frozen=True)
class OptimizerConfig(_Section):
    """AdamW with DeiT's settings.

    Attributes:
        learning_rate: Peak rate for 512 pictures a step; it scales with the batch size.
        min_learning_rate: Rate at the end of the cosine, not scaled.
        weight_decay: Weight decay of matrices. Vectors, position tables and the class token have
            none.
        betas: Decay of AdamW's two moving averages.
        clip_norm: Largest norm of the gradient; 0 does not clip.
        ema_decay: Decay of the moving average of the weights, which is validated and saved; 0
            saves the weights themselves.
        drop_path: Probability of dropping a residual branch in the last block.
        layer_decay: Factor of the learning rate from each block to the one before it (Clark et
            al. 2020; Bao et al. 2022), for networks that start from trained weights; 1 gives all
            layers the same rate.
        gate_scale: Factor of the learning rate of gates (SViT), which start untrained in a trained
            network. Other networks ignore it.
        precision: Precision of the forward pass; weights and optimiser stay float32. `bfloat16` is
            for GPUs and CPUs with instructions for it. On others it is many times slower.
    """

    learning_rate: _Positive = 5e-4
    min_learning_rate: _NotNegative = 1e-5
    weight_decay: _NotNegative = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: _NotNegative = 0.0
    ema_decay: Annotated[float, "in [0, 1)"] = 0.99996
    drop_path: Annotated[float, "in [0, 1)"] = 0.1
    layer_decay: Annotated[float, "in (0, 1]"] = 1.0
    gate_scale: _Positive = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class LossConfig(_Section):
    """The loss.

    Attributes:
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        early_exit: Target of the first stage: `kl`, the second stage's answer (the paper), or
            `ce`, the label (the paper's ablation).
        early_exit_weight: Weight of the first stage's term.
        teacher: Checkpoint of a trained dense network to distil from; None for none.
        teacher_weight: Share of the target that comes from the teacher, in [0, 1].
        teacher_temperature: Temperature of both answers in the distillation.
        keep_share: Share of the tokens that the first third of the gates is to keep, in (0, 1]
            (SViT); the second third keeps its square, the last its cube. Other networks ignore it.
        kept_weight: Weight of the distance from these shares.
    """

    label_smoothing: Annotated[float, "in [0, 1)"] = 0.1
    early_exit: Literal["kl", "ce"] = "kl"
    early_exit_weight: _NotNegative = 1.0
    teacher: Path | None = None
    teacher_weight: _Share = 0.5
    teacher_temperature: _Positive = 1.0
    keep_share: Annotated[float, "in (0, 1]"] = 0.7
    kept_weight: _NotNegative = 4.0


@dataclass(frozen=True)
class TrainConfig:
    """A training run. The same configuration ends in the same weights on the same machine.

    Attributes:
        model: Configuration of the network.
        data: Pictures.
        output: Folder for checkpoints and metrics.
        seed: Seed of the initial weights and of every later draw.
        init: Checkpoint to start from, in any layout of `Checkpoint.read`; None starts from random
            weights.
        device: A torch device, or `auto` for a GPU if there is one, else the CPU.
        tensorboard: Whether to write TensorBoard event files too.
        augmentation: Augmentation of the training pictures.
        schedule: Length, phases and steps.
        optimizer: Optimiser and learning rate.
        loss: Loss and teacher.
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


def read_train_config(path: Path) -> TrainConfig:
    """Read a configuration file. Relative paths start at its folder.

    Args:
        path: A `.toml`, `.yaml` or `.yml` file.

    Raises:
        ConfigError: The file cannot be read, or a value in it is not allowed.
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
    """Build a configuration from the nested plain values of a file.

    Raises:
        ConfigError: A field is unknown, missing, of the wrong type or out of range.
    """
    fields = dict(values)
    if "model" in fields:
        fields["model"] = _model(fields["model"])
    if isinstance(fields.get("schedule"), dict):
        fields["schedule"] = _with_phases(fields["schedule"])
    return decode(TrainConfig, fields, refuse_unknown=True)


def _model(values: object) -> ModelConfig:
    """Build the configuration of a preset with changed fields."""
    if not isinstance(values, dict):
        raise ConfigError(f"model is {shown(values)}.", "Write a [model] section.")
    fields = {str(k): tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    name = fields.pop("preset", None)
    if not isinstance(name, str):
        raise ConfigError("[model] names no preset.", "Write preset = NAME; other keys change it.")
    model = preset(name).replace(**fields)
    if not number_of_classes(model):
        raise ConfigError(
            f"The preset {name} gives features, and training needs classes.",
            "Name a preset with classes, such as sac_deit_small_patch16_224.",
        )
    return model


def _with_phases(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """Scale the phases that a file does not give to its number of epochs."""
    epochs = schedule.get("epochs")
    if not isinstance(epochs, int) or epochs < 1:
        return dict(schedule)  # the default, or an error
    usual = ScheduleConfig()
    phase = round(epochs * usual.all_tokens_epochs / usual.epochs)
    warm = min(usual.warmup_epochs, epochs * usual.warmup_epochs / usual.epochs)
    return {"all_tokens_epochs": phase, "warmup_epochs": warm, **schedule}


def _parse(path: Path) -> object:
    suffix = path.suffix.lower()
    wrong = OSError, ValueError, RecursionError
    with raised_as(ConfigError, f"{path} cannot be read", "Check the file.", wrong):
        if suffix == ".toml":
            module = "tomllib" if sys.version_info >= (3, 11) else "tomli"
            toml = require(module, "Reading a .toml configuration")
            return toml.loads(read_bounded(path).decode())
        if suffix in (".yaml", ".yml"):
            yaml = require("yaml", "Reading a .yaml configuration")
            problem, fix = f"{path} is not valid YAML", "Correct that line."
            with raised_as(ConfigError, problem, fix, yaml.YAMLError):
                return yaml.safe_load(read_bounded(path).decode())
    raise ConfigError(f"{path} is neither .toml nor .yaml.", "Name a .toml or .yaml file.")


def _resolve(config: TrainConfig, folder: Path) -> TrainConfig:
    """Make every relative path start at the folder of the file."""
    data, loss = config.data, config.loss
    validation, teacher = data.validation, loss.teacher
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            data, train=folder / data.train, validation=validation and folder / validation
        ),
        loss=dataclasses.replace(loss, teacher=teacher and folder / teacher),
        output=folder / config.output,
        init=config.init and folder / config.init,
    )
