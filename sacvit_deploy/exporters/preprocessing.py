"""How a network wants its pictures: as asked for, as a file beside its weights says, or DeiT's.

Known are the `config.json` of timm and the `preprocessor_config.json` of Hugging Face. Networks of
one shape are trained with different values: timm's DeiT with ImageNet's mean, its ViT with 0.5.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacvit_deploy.decode import parse_json, read_bounded, shown
from sacvit_deploy.errors import ConfigError, raised_as
from sacvit_deploy.families.config import ModelConfig, preset_preprocessing
from sacvit_deploy.model.checkpoints import Checkpoint
from sacvit_deploy.spec import Preprocessing

_LOG = logging.getLogger(__name__)

OPTIONS = "--mean, --std, --crop-ratio, --interpolation"

_FILES = ("preprocessor_config.json", "config.json")
# Pillow's numbers of the filters, which Hugging Face stores.
_FILTERS = {2: "bilinear", 3: "bicubic"}
_WRONG = KeyError, TypeError, ValueError
# What timm takes where a file says nothing.
_TIMM_RATIO, _TIMM_FILTER = 0.875, "bicubic"
# Names that a dense ViT of timm and DeiT share.
_DENSE_NAMES = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}


@dataclass(frozen=True)
class PreprocessingRequest:
    """Values that replace those of the file or of the preset; None keeps them.

    Attributes:
        mean: Mean of all channels, or of each, on the 0 to 1 scale.
        std: Standard deviation of all channels, or of each.
        crop_ratio: Crop side over the side of the resized picture.
        interpolation: `bilinear` or `bicubic`.
        fit: `crop` or `squash`; see `Preprocessing`.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_ratio: float | None = None
    interpolation: str | None = None
    fit: str | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of `Preprocessing` that are given; one number counts for all channels."""
        given = {
            "mean": self.mean and (self.mean * 3 if len(self.mean) == 1 else self.mean),
            "std": self.std and (self.std * 3 if len(self.std) == 1 else self.std),
            "crop_ratio": self.crop_ratio,
            "interpolation": self.interpolation,
            "fit": self.fit,
        }
        return {name: value for name, value in given.items() if value is not None}

    def over(self, other: PreprocessingRequest) -> PreprocessingRequest:
        """Fill what is not given from another request."""
        return PreprocessingRequest(**{**other.fields, **self.fields})


def preprocessing_for(
    config: ModelConfig,
    request: PreprocessingRequest,
    checkpoint: Checkpoint | None,
) -> Preprocessing:
    """Find the preprocessing of a network.

    A warning is logged where nothing says it, and the weights may be of timm's ViT.

    Args:
        config: The network.
        request: Values that count more than those of a file.
        checkpoint: Its weights, beside which a file is looked for; None for none.

    Raises:
        ConfigError: A value is out of range, or a file asks for what is not offered.
    """
    found: dict[str, Any] = {}
    if checkpoint is not None and checkpoint.config is None:
        file = checkpoint.path and _file_beside(checkpoint.path)
        if file is not None:
            found = read_preprocessing(file)
            _LOG.info("Preprocessing from %s", file)
        elif not request.fields and _may_be_vit(checkpoint):
            _LOG.warning(
                "%s has the names of timm's networks, and nothing tells its preprocessing: DeiT's "
                "is taken. Networks called vit_... want mean 0.5 and std 0.5, and mostly crop "
                "ratio 0.9. If this is one, give %s (in Python: preprocessing=), or put timm's "
                "config.json beside the file.",
                checkpoint.name,
                OPTIONS,
            )
    return dataclasses.replace(preset_preprocessing(config), **{**found, **request.fields})


def _may_be_vit(checkpoint: Checkpoint) -> bool:
    return checkpoint.tensors.keys() >= _DENSE_NAMES and "deit" not in checkpoint.name.lower()


def request_of_timm(cfg: Mapping[str, Any]) -> PreprocessingRequest:
    """Values of the `pretrained_cfg` of a model of timm; `ConfigError` if one is not offered."""
    fix = "Give `preprocessing` yourself."
    with raised_as(ConfigError, "Its pretrained_cfg cannot be used", fix, _WRONG):
        return PreprocessingRequest(**_of_timm(cfg))


def _file_beside(checkpoint: Path) -> Path | None:
    """The file that says it; a `config.json` may be of a kind that does not."""
    for name in _FILES:
        file = checkpoint.parent / name
        if file.is_file() and _section(_read(file)) is not None:
            return file
    return None


def read_preprocessing(file: Path) -> dict[str, Any]:
    """Read fields of `Preprocessing` from a file of timm or Hugging Face.

    Raises:
        ConfigError: The file cannot be read, or asks for what is not offered.
    """
    found = _section(_read(file))
    if found is None:
        raise ConfigError(
            f"{file} does not say how pictures are prepared.",
            f"Give a config.json of timm or a preprocessor_config.json, or {OPTIONS}.",
        )
    fix = f"Remove the file, and give the values that fit: {OPTIONS}."
    problem = f"The preprocessing in {file} cannot be used"
    with raised_as(ConfigError, problem, fix, _WRONG):
        return _of_hugging_face(found) if "image_mean" in found else _of_timm(found)


def _read(file: Path) -> Any:
    with raised_as(ConfigError, f"{file} cannot be read", "Remove it, or write it again."):
        text = read_bounded(file)
    return parse_json(text.decode("utf-8", "replace"), str(file))


def _section(content: Any) -> Mapping[str, Any] | None:
    """The part of a file that describes the preprocessing."""
    if not isinstance(content, Mapping):
        return None
    for part in (content, content.get("pretrained_cfg")):
        if isinstance(part, Mapping) and {"mean", "image_mean"} & part.keys():
            return part
    return None


def _of_timm(found: Mapping[str, Any]) -> dict[str, Any]:
    mode = found.get("crop_mode") or "center"
    fits = {"center": "crop", "squash": "squash"}
    if mode not in fits:
        raise ValueError(f"crop_mode {mode!r} is not offered; {' and '.join(fits)} are")
    return {
        "mean": tuple(found["mean"]),
        "std": tuple(found["std"]),
        "crop_ratio": found.get("crop_pct") or _TIMM_RATIO,
        "interpolation": found.get("interpolation") or _TIMM_FILTER,
        "fit": fits[mode],
    }


def _of_hugging_face(found: Mapping[str, Any]) -> dict[str, Any]:
    resample = found.get("resample", 2)
    if resample not in _FILTERS:
        raise ValueError(f"resample {shown(resample)} is not offered; 2 and 3 are")
    size, crop = found.get("size"), found.get("crop_size")
    fields: dict[str, Any] = {
        "mean": tuple(found["image_mean"]),
        "std": tuple(found["image_std"]),
        "interpolation": _FILTERS[resample],
        "crop_ratio": 1.0,
        "fit": "squash",
    }
    if found.get("do_normalize") is False:
        fields |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if found.get("do_center_crop"):
        fields["crop_ratio"] = _shorter(crop) / _shorter(size)
    if isinstance(size, int) or (isinstance(size, Mapping) and "shortest_edge" in size):
        fields["fit"] = "crop"
    return fields


def _shorter(size: Any) -> int:
    """The shorter side of a size, in any of the ways in which it is stored."""
    sides = size.values() if isinstance(size, Mapping) else [size]
    return min(int(side) for side in sides)
