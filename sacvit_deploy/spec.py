"""The contract between both halves: tensors, graphs, preprocessing, and the exit's two numbers."""

from __future__ import annotations

import math
import numbers
import re
from dataclasses import dataclass
from typing import Literal, cast

from sacvit_deploy.decode import check_field, check_types, shown
from sacvit_deploy.errors import ConfigError

Role = Literal["early_exit", "refine", "single", "backbone"]
Selection = Literal["host", "graph"]
InputKind = Literal["float", "uint8"]
WeightStorage = Literal["fp32", "fp16"]
Decode = Literal["exact", "fast"]
Precision = Literal["fp32", "fp16", "int8"]
EngineBackend = Literal["tensorrt", "tensorrt-rtx"]
Backend = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]

# Tensor names, the same in torch, in ONNX and in an engine.
IMAGE = "image"
LOGITS = "logits"
SCORE = "score"
COARSE_EMBEDDINGS = "coarse_embeddings"
COARSE_FEATURES = "coarse_features"
TARGET_INDEX = "target_index"
NON_TARGET_INDEX = "non_target_index"
FINE_INDEX = "fine_index"
KEPT = "kept"
KEPT_MASK = "kept_mask"
OVERFLOW = "overflow"
SEMANTIC_ATTENTION = "semantic_attention"
FEATURES = ("c2", "c3", "c4", "c5")

# Name of the dynamic axis.
BATCH = "batch"

# Longest side of a network's input, in pixels.
MAX_SIDE = 1 << 16
# How an ONNX file names a file of weights: protobuf's string pair "location", length and name.
_EXTERNAL_DATA = re.compile(rb"\n\x08location\x12([\x00-\x7f]|[\x80-\xff]\x01)", re.DOTALL)

_LEAST_RATIO = 0.01
_LEAST_TEMPERATURE, _LARGEST_TEMPERATURE = 1e-6, 1e6

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one input or output; a string in the shape is a dynamic axis."""

    name: str
    dtype: Literal["float32", "float16", "uint8", "int64"]
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """Inputs and outputs of one graph, in order."""

    role: Role
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True)
class Preprocessing:
    """Steps from a picture to the input tensor: resize, crop or pad, normalise.

    Attributes:
        crop: (height, width) of the result in pixels, up to `MAX_SIDE`.
        crop_ratio: Crop side over the side of the resized picture, in [0.01, 1].
        interpolation: Pillow's name of the resampling filter.
        mean: Mean per RGB channel, on the 0 to 1 scale.
        std: Standard deviation per RGB channel, on the 0 to 1 scale.
        fit: `crop` resizes the picture to cover the result, and cuts out its centre. `squash` does
            the same, but without keeping the ratio of the sides. `pad` resizes it to lie inside, in
            the upper left corner, and fills the rest with the mean colour.

    Raises:
        ConfigError: A value is of another type or out of range.
    """

    crop: tuple[int, int]
    crop_ratio: float = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    fit: Literal["crop", "squash", "pad"] = "crop"

    def __post_init__(self) -> None:
        check_types(self)
        ratio, sides = self.crop_ratio, f"two numbers from 1 to {MAX_SIDE}"
        check_field(_LEAST_RATIO <= ratio <= 1, "crop_ratio", ratio, "a number in [0.01, 1]")
        check_field(all(abs(m) <= 1e6 for m in self.mean), "mean", self.mean, "at most 1e6 each")
        check_field(all(1e-6 <= s <= 1e6 for s in self.std), "std", self.std, "1e-6 to 1e6 each")
        check_field(all(1 <= side <= MAX_SIDE for side in self.crop), "crop", self.crop, sides)


LARGEST_COUNT = 2**31 - 1
"""Largest number of pictures or results that can be asked for."""


def as_number(value: object) -> float:
    """Convert a number to a float; NaN, which is in no range, stands for everything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_count(name: str, count: object, largest: int = LARGEST_COUNT) -> int:
    """Return a whole number; `ConfigError` with its name if it is not in [1, largest]."""
    fits = isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= largest
    check_field(fits, name, count, f"a whole number from 1 to {largest:,}")
    return cast("int", count)


def check_eta(eta: float) -> float:
    """Convert an exit threshold to a float; `ConfigError` if it is not a number in [0, 1]."""
    number = as_number(eta)
    if not 0 <= number <= 1:
        raise ConfigError(
            f"The exit threshold eta is {shown(eta)}.",
            "Make it a number from 0 (every picture exits early) to 1 (none does).",
        )
    return number


def check_temperature(temperature: float) -> float:
    """Convert an exit temperature to a float; `ConfigError` if it is not from 1e-6 to 1e6."""
    number = as_number(temperature)
    if not _LEAST_TEMPERATURE <= number <= _LARGEST_TEMPERATURE:
        raise ConfigError(
            f"The exit temperature is {shown(temperature)}.", "Make it a number from 1e-6 to 1e6."
        )
    return number


def external_data(graph: bytes) -> set[str]:
    """Names of the files of weights of an ONNX graph, found without the onnx library."""
    found = set()
    for match in _EXTERNAL_DATA.finditer(graph):
        low, *high = match[1]  # 7 bits a byte
        length = low & 127 | sum(high) << 7
        found.add(graph[match.end() : match.end() + length].decode(errors="replace"))
    return found
