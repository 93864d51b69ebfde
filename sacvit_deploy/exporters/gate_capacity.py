"""Capacities of gates, from the number of tokens that they keep on pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray

from sacvit_deploy.decode import check_field
from sacvit_deploy.exporters.precision.request import choose_samples
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.families.svit import gated_length
from sacvit_deploy.progress import OnProgress, PictureCount, silent
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.samples import read_pictures
from sacvit_deploy.spec import Preprocessing

if TYPE_CHECKING:
    from sacvit_deploy.model.svit import SelectiveViT
    from sacvit_deploy.model.svit_adapter import SelectiveAdapter
    from sacvit_deploy.model.vision_model import VisionModel

_STEP = 8  # tokens: kernels compute whole multiples of it
_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class CapacityRequest:
    """Pictures to find capacities on.

    Attributes:
        data: Pictures; see `read_pictures`.
        quantile: Share of the pictures that the capacity of each gate is enough for, in (0, 1].
        samples: Number of pictures to use, at least one; all of them if there are fewer.
        seed: Seed of their choice.
        strict: Whether a second graph is to compute the other pictures; see `GateConfig`.

    Raises:
        ConfigError: A value is out of range.
    """

    data: Path
    quantile: float = 0.95
    samples: int = 256
    seed: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        share = self.quantile
        check_field(0 < share <= 1, "the capacity quantile", share, "above 0 and at most 1")
        check_field(self.samples >= 1, "samples", self.samples, "1 or more")
        check_field(self.seed >= 0, "seed", self.seed, "0 or more")


def with_capacity(
    model: VisionModel,
    preprocessing: Preprocessing,
    request: CapacityRequest,
    on_progress: OnProgress = silent,
) -> ModelConfig:
    """Find the configuration of a network in the mode `capacity`.

    Each capacity is a quantile of the kept tokens on all tokens, rounded up to a multiple of 8.

    Args:
        model: In evaluation mode.
        preprocessing: How it wants the pictures.
        request: Pictures and quantile.
        on_progress: Called after each batch with the share of the pictures that is done.

    Raises:
        ConfigError: The network has no gates.
        DataError: The data set cannot be read.
        ImageError: A picture of it cannot be read.
    """
    _ = model.config.gating  # else there is nothing to count
    gated = cast("SelectiveViT | SelectiveAdapter", model)
    counts = kept_counts(gated, preprocessing, request, on_progress)
    most = gated_length(model.config)
    found = np.quantile(counts, request.quantile, axis=0, method="inverted_cdf")
    capacity = tuple(int(min(most, _STEP * np.ceil(max(c, 1) / _STEP))) for c in found)
    return model.config.replace(mode="capacity", capacity=capacity, strict=request.strict)


@torch.no_grad()
def kept_counts(
    model: SelectiveViT | SelectiveAdapter,
    preprocessing: Preprocessing,
    request: CapacityRequest,
    on_progress: OnProgress = silent,
) -> NDArray[np.int64]:
    """Tokens that each gate keeps of each picture, (pictures, gates); see `with_capacity`."""
    preprocess = Preprocessor(preprocessing, decode="exact")
    pictures = choose_samples(read_pictures(request.data), request.samples, request.seed)
    passing, counts = PictureCount(len(pictures), "counting tokens"), []
    batch = max(1, _TOKENS_AT_ONCE // gated_length(model.config))
    for start in range(0, len(pictures), batch):
        images = np.stack([preprocess(picture) for picture in pictures[start : start + batch]])
        keep = model(torch.from_numpy(images), "masked").keep
        counts.append(keep.sum(dim=2).numpy())
        done = start + len(images)
        on_progress(passing.share(done), passing.in_words(done))
    return np.concatenate(counts)
