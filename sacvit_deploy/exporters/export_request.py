"""What a user asks of an export, and everything that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sacvit_deploy.bundle import check_eta, check_replaceable
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.exporters.bundle_from_model import ExportOptions, export_bundle
from sacvit_deploy.exporters.model_source import (
    checkpoint_config,
    checkpoint_model,
    checkpoint_origin,
    random_model,
    random_origin,
)
from sacvit_deploy.model.presets import preset_preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sacvit_deploy.bundle import Bundle
    from sacvit_deploy.exporters.precision import PrecisionRequest
    from sacvit_deploy.spec import InputKind, ModelConfig, Selection, WeightStorage


@dataclass(frozen=True)
class ExportRequest:
    """One call of `sacvit-deploy export`.

    Attributes:
        output: The bundle folder to create.
        checkpoint: File with the weights; None draws them from `seed`.
        base: Configuration to start from; None takes the one the checkpoint records.
        overrides: Fields of the configuration to change.
        seed: Of random weights.
        opset: ONNX operator set.
        selection: Who picks the target tokens.
        input_kind: What the graphs take.
        labels: Text file, one class name a line; None numbers the classes.
        eta: Default exit threshold in [0, 1].
        weight_storage: `fp32`, or `fp16` for half the bytes.
        force: Replace a bundle that is already there.
        precisions: What to add to the FP32 graphs.
    """

    output: Path
    checkpoint: Path | None = None
    base: ModelConfig | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    opset: int = 18
    selection: Selection = "host"
    input_kind: InputKind = "float"
    labels: Path | None = None
    eta: float = 0.5
    weight_storage: WeightStorage = "fp32"
    force: bool = False
    precisions: tuple[PrecisionRequest, ...] = ()


def run_export(request: ExportRequest, report: Callable[[str], None] = lambda _: None) -> Bundle:
    """Build the model, export it, and return the bundle.

    Raises:
        SacvitDeployError: Anything in the request does not fit; nothing is written then.
    """
    # Cheap refusals first: nobody wants to wait for an export that cannot be kept.
    check_eta(request.eta)
    check_replaceable(request.output, force=request.force)
    config = _config(request)
    labels = _labels(request, config)
    if request.checkpoint is None:
        model, origin = random_model(config, request.seed), random_origin(request.seed)
    else:
        model = checkpoint_model(request.checkpoint, config)
        origin = checkpoint_origin(request.checkpoint)
    options = ExportOptions(
        preset_preprocessing(config),
        labels,
        origin,
        opset=request.opset,
        selection=request.selection,
        input_kind=request.input_kind,
        eta=request.eta,
        weight_storage=request.weight_storage,
        precisions=request.precisions,
    )
    return export_bundle(model, options, request.output, force=request.force, report=report)


def _config(request: ExportRequest) -> ModelConfig:
    if request.checkpoint is not None:
        config = checkpoint_config(request.checkpoint, request.base)
    elif request.base is not None:
        config = request.base
    else:
        raise ConfigError(
            "Random weights were asked for, but not of which network.",
            "Name it with --preset, for example --preset sac_deit_small_patch16_224.",
        )
    return config.replace(**request.overrides)


def _labels(request: ExportRequest, config: ModelConfig) -> tuple[str, ...]:
    if request.labels is None:
        return tuple(f"class {index}" for index in range(config.num_classes))
    try:
        lines = request.labels.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The labels file {request.labels} cannot be read: {error}.",
            "Give a UTF-8 text file with one class name a line.",
        ) from error
    labels = tuple(line.strip() for line in lines if line.strip())
    if len(labels) != config.num_classes:
        raise ConfigError(
            f"{request.labels} names {len(labels)} classes, the network has {config.num_classes}.",
            "Give one class name a line, in class order, or set --set num_classes=N.",
        )
    return labels
