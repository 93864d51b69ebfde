"""What the authors' own classes computed on small networks, from the reference data.

The README beside the files says how each was made. Weights are stored under the authors' names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sacvit_deploy.families.config import ModelConfig, preset
from sacvit_deploy.model.checkpoints import Checkpoint

_SMALL = {"embed_dim": 48, "num_heads": 3, "num_classes": 16}
CONFIGS = {
    "lfvit_small_7x7": preset("lf_deit_small_patch16_224").replace(**_SMALL),
    "cflvvit_small_7x7": preset("cf_lv_vit_small_224").replace(**_SMALL),
    "svit_det_adapter": preset("svit_adapter_demo_160"),
}
TWO_STAGE = [name for name, config in CONFIGS.items() if config.two_stage]
GATED = preset("svit_deit_small_patch16_224").replace(**{**_SMALL, "num_heads": 4})


@dataclass(frozen=True)
class Published:
    """Input, weights and output of one class.

    Attributes:
        name: Name of the file.
        values: Arrays by key.
        folder: Where the weights go as a checkpoint.
    """

    name: str
    values: dict[str, NDArray[Any]]
    folder: Path

    @classmethod
    def read(cls, shared: Path, name: str, folder: Path) -> Published:
        with np.load(shared / "golden" / f"{name}.npz") as file:
            return cls(name, dict(file), folder)

    def __getitem__(self, key: str) -> NDArray[Any]:
        return self.values[key]

    @property
    def config(self) -> ModelConfig:
        return CONFIGS.get(self.name, GATED)

    @property
    def image(self) -> NDArray[np.float32]:
        return self.values["image"].astype(np.float32)

    @cached_property
    def checkpoint(self) -> Path:
        """The weights as their authors publish theirs."""
        prefix = "param/"
        weights = {
            key.removeprefix(prefix): torch.from_numpy(value.astype(np.float32))
            for key, value in self.values.items()
            if key.startswith(prefix)
        }
        path = self.folder / "published.pth"
        torch.save({"model": weights}, path)
        return path

    def model(self, config: ModelConfig | None = None) -> Any:
        return Checkpoint.read(self.checkpoint).model(config or self.config)

    @property
    def targets(self) -> NDArray[np.int64]:
        """Coarse indices, by falling score."""
        if "target_index" in self.values:
            return self.values["target_index"]
        return self.values["score_order"][:, : self.config.num_targets]

    @property
    def others(self) -> NDArray[np.int64]:
        """Coarse indices, in the authors' order."""
        if "non_target_index" in self.values:
            return self.values["non_target_index"]
        return self.values["score_order"][:, self.config.num_targets :]

    def fine_sequence(self, fine: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
        """What enters block 0 in the second stage, in the order of our indices."""
        class_token, targets, rest = np.split(
            self.values["fine_sequence_in"], [1, 1 + fine.shape[1]], axis=1
        )
        return np.concatenate(
            [
                class_token,
                _reordered(targets, self.values["fine_index"], fine),
                _reordered(rest, self.others, others),
            ],
            axis=1,
        )


def _reordered(
    rows: NDArray[Any], theirs: NDArray[np.int64], ours: NDArray[np.int64]
) -> NDArray[Any]:
    """The same rows, which stand for the indices `theirs`, in the order of `ours`."""
    places = np.argsort(theirs, axis=1)
    ranks = np.argsort(np.argsort(ours, axis=1), axis=1)
    places = np.take_along_axis(places, ranks, axis=1)
    return np.take_along_axis(rows, places[..., None], axis=1)
