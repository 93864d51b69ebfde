"""What the authors' own classes of STViT-R computed on small networks, from the reference data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sacvit_deploy.families.config import ModelConfig, preset
from sacvit_deploy.model.checkpoints import Checkpoint
from sacvit_deploy.model.stvit_r import SemanticSwin


@dataclass(frozen=True)
class PublishedSwin:
    """Input, weights and output of one class.

    Attributes:
        values: Arrays by key.
        meta: Its settings.
        folder: Where the weights go as a checkpoint.
    """

    values: dict[str, NDArray[Any]]
    meta: dict[str, Any]
    folder: Path

    @classmethod
    def read(cls, shared: Path, name: str, folder: Path) -> PublishedSwin:
        with np.load(shared / "golden" / f"{name}.npz") as file:
            values = dict(file)
        return cls(values, json.loads(str(values["meta"])), folder)

    def __getitem__(self, key: str) -> NDArray[Any]:
        return self.values[key]

    def config(self, size: tuple[int, int] = (224, 224)) -> ModelConfig:
        """The configuration of their network, for pictures of one size."""
        features = self.meta["variant"] == "backbone"
        depths = tuple(self.meta["depths"])
        return preset("stvit_r_swin_tiny_224").replace(
            image_size=size,
            embed_dim=self.meta["embed_dim"],
            num_heads=self.meta["num_heads"][0],
            num_classes=16,
            mlp_ratio=self.meta["mlp_ratio"],
            depths=depths,
            depth=sum(depths),
            task="features" if features else "classes",
        )

    def image(self, key: str = "image") -> torch.Tensor:
        return torch.from_numpy(self.values[key].astype(np.float32))

    @cached_property
    def checkpoint(self) -> Path:
        """The weights as their authors publish theirs, constant tables included."""
        prefix = "param/"
        weights = {
            key.removeprefix(prefix): torch.from_numpy(value.astype(np.float32))
            for key, value in self.values.items()
            if key.startswith(prefix)
        }
        for block in range(2):
            weights[f"layers.0.blocks.{block}.attn.relative_position_index"] = torch.zeros(49, 49)
        weights["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
        weights["patch_embed.proj.0.bn.num_batches_tracked"] = torch.tensor(7)
        path = self.folder / "published.pth"
        torch.save({"model": weights}, path)
        return path

    def model(self, size: tuple[int, int] = (224, 224)) -> SemanticSwin:
        model = Checkpoint.read(self.checkpoint).model(self.config(size))
        assert isinstance(model, SemanticSwin)
        return model
