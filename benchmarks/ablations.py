"""Measure what each part of a trained SAC-ViT is worth, by changing the inference alone.

Every picture goes through the second stage. The weights stay as they were trained.

Example:
  python -m benchmarks.ablations MODEL.safetensors val.zip classes.txt -o out.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sacvit_deploy.families.config import preset_preprocessing
from sacvit_deploy.model.checkpoints import Checkpoint
from sacvit_deploy.model.two_stage import TwoStageViT, select_tokens
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.samples import read_samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from sacvit_deploy.families.config import ModelConfig

    Rescore = Callable[[torch.Tensor], torch.Tensor]

_BATCH = 125
_FIELDS: dict[str, list[Any]] = {
    "alpha": [0.25, 0.375, 0.5, 0.625, 0.75, 0.875],
    "score_beta": [0.0, 0.5, 0.9, 0.99, 0.999],
    "score_first_block": [0, 1, 2, 3, 4],
    "cls_update": ["joint", "mean"],
    "attention": ["clustered", "joint"],
    "non_target_source": ["embedding", "final"],
}


class Ablation:
    """A trained model, and pictures to measure it on."""

    def __init__(self, checkpoint: Path, data: Path, classes: list[str]) -> None:
        """Read both; `classes` are the class names of the data in the order of the head."""
        read = Checkpoint.read(checkpoint)
        config = read.config
        if config is None:
            raise SystemExit(f"{checkpoint} does not say which network it holds.")
        self.config: ModelConfig = config
        self.model = read.model(config)
        samples = read_samples(data).samples
        preprocess = Preprocessor(preset_preprocessing(config))
        self.images = torch.from_numpy(np.stack([preprocess(sample) for sample in samples]))
        self.labels = torch.tensor([classes.index(sample.label) for sample in samples])

    @torch.no_grad()
    def top1(self, model: TwoStageViT, rescore: Rescore = lambda score: score) -> float:
        """Measure the top-1 of the second stage, in [0, 1]."""
        correct = 0
        batches = zip(self.images.split(_BATCH), self.labels.split(_BATCH), strict=True)
        for images, labels in batches:
            coarse = model.early_exit(images)
            selection = select_tokens(rescore(coarse.score), model.config)
            correct += int((model.refine(images, coarse, selection).argmax(1) == labels).sum())
        return correct / len(self.labels)

    def changed(self, **fields: Any) -> TwoStageViT:
        """Make a model with the same weights and other fields of the configuration."""
        model = TwoStageViT(self.config.replace(**fields))
        model.load_state_dict(self.model.state_dict())
        return model.eval()

    def without_fusion(self) -> TwoStageViT:
        """Make a model that does not add the coarse features to the fine tokens."""
        model = self.changed()
        torch.nn.init.zeros_(model.fusion.mlp.fc2.weight)
        torch.nn.init.zeros_(model.fusion.mlp.fc2.bias)
        return model

    def rows(self) -> list[dict[str, Any]]:
        """Measure one row per change."""
        model = self.changed()
        generator = torch.Generator().manual_seed(0)
        rows: list[dict[str, Any]] = [
            {"change": f"{name}={value}", "top1": self.top1(self.changed(**{name: value}))}
            for name, values in _FIELDS.items()
            for value in values
        ]
        rows += [
            {
                "change": f"random targets, draw {draw}",
                "top1": self.top1(model, lambda s: torch.rand(s.shape, generator=generator)),
            }
            for draw in range(3)
        ]
        rows.append({"change": "least attended as targets", "top1": self.top1(model, torch.neg)})
        rows.append({"change": "no fusion", "top1": self.top1(self.without_fusion())})
        return [{"change": "as trained", "top1": self.top1(model)}, *rows]


def main() -> None:
    """Measure, print the rows, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("classes", type=Path, help="the data's class names in head order")
    parser.add_argument("-o", "--output", type=Path, required=True)
    chosen = parser.parse_args()
    classes = chosen.classes.read_text("utf-8").split()
    ablation = Ablation(chosen.checkpoint, chosen.data, classes)
    document = {
        "checkpoint": chosen.checkpoint.name,
        "images": len(ablation.labels),
        "torch": torch.__version__,
        "rows": ablation.rows(),
    }
    chosen.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for row in document["rows"]:
        print(f"{row['top1']:.3f}  {row['change']}")


if __name__ == "__main__":
    main()
