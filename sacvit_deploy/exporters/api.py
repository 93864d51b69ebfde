"""`sacvit_deploy.export`: a network becomes a bundle in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.exporters.precision import PrecisionRequest
from sacvit_deploy.exporters.preprocessing import PreprocessingRequest, request_of_timm
from sacvit_deploy.families.config import preset as preset_config
from sacvit_deploy.model.checkpoints import Checkpoint
from sacvit_deploy.model.vision_model import VisionModel
from sacvit_deploy.spec import InputKind, Selection


def export(  # noqa: PLR0913  one call; all but the first two have a good default
    source: str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module,
    output: str | os.PathLike[str],
    *,
    preset: str | None = None,
    labels: str | Path | Sequence[str] | None = None,
    eta: float = 0.5,
    selection: Selection = "host",
    input: InputKind = "float",
    preprocessing: PreprocessingRequest | None = None,
    precisions: Sequence[str] = (),
    calibration_data: str | os.PathLike[str] | None = None,
    force: bool = False,
    **fields: Any,
) -> Bundle:
    """Export a network to a bundle.

    Args:
        source: A checkpoint file; the name of a model of timm, if timm is installed; a state dict
            of tensors; or an `nn.Module` with such a state dict, for example of timm, whose
            `pretrained_cfg` tells the preprocessing.
        output: Folder to create.
        preset: Network, as in `sacvit-deploy export --preset`; None takes the one that the file
            records, or else the only preset of these shapes.
        labels: `imagenet-1k`, a file (see `sacvit_deploy.labels`), or the names in class order.
        eta: Default exit threshold in [0, 1].
        selection: Who picks the target tokens: the `host`, or the second `graph`.
        input: `float` takes the normalised image; `uint8` takes pixels.
        preprocessing: Values that replace those of the file, the module or the preset.
        precisions: Graphs to add to the FP32 ones: `fp16`, `int8`.
        calibration_data: Pictures for them; INT8 needs some.
        force: Replace an existing bundle.
        fields: Fields of the preset to change, such as `num_classes=10`.

    Raises:
        SacvitDeployError: See `exporters.export.export_bundle`.
    """
    data = None if calibration_data is None else Path(calibration_data)
    options = ExportOptions(
        config=None if preset is None else preset_config(preset),
        overrides=fields,
        labels=labels,
        selection=selection,
        input_kind=input,
        eta=eta,
        preprocessing=(preprocessing or PreprocessingRequest()).over(_preprocessing_of(source)),
        precisions=tuple(_request(name, data) for name in precisions),
        force=force,
    )
    return export_bundle(_weights(source), Path(output), options)


def _weights(source: object) -> Path | Checkpoint | VisionModel:
    if isinstance(source, (str, os.PathLike)):
        return Path(os.fspath(source))
    if isinstance(source, VisionModel):
        return source
    if isinstance(source, nn.Module):
        source = source.state_dict()
    if isinstance(source, Mapping):
        return Checkpoint.of_state_dict(source)
    raise ConfigError(
        f"A network was asked for and {type(source).__name__} found.",
        "Give a checkpoint file, a state dict, or an nn.Module.",
    )


def _preprocessing_of(source: object) -> PreprocessingRequest:
    found = getattr(source, "pretrained_cfg", None)
    return request_of_timm(found) if isinstance(found, Mapping) else PreprocessingRequest()


def _request(name: str, data: Path | None) -> PrecisionRequest:
    precision: Any = name
    return PrecisionRequest(precision, data)
