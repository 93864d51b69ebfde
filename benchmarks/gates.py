"""Speed of SViT's three graphs against the dense network, in CPU time of one thread.

    python benchmarks/gates.py --folder gates

Weights are random. Without training the gates would keep everything, so the bias of each is set,
one after another, such that it keeps the published share of the tokens on the package pictures and
their quarters. All graphs run in turns in one process, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.families.config import ModelConfig, preset, preset_preprocessing
from sacvit_deploy.families.svit import published_shares
from sacvit_deploy.model.build import random_model
from sacvit_deploy.model.svit import SelectiveViT
from sacvit_deploy.runtime.load import load
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.samples import sample_pictures

SVIT, DENSE = "svit_deit_small_patch16_224", "deit_small_patch16_224"
MEAN_COUNTS = (138, 97, 68)


def pictures(config: ModelConfig) -> np.ndarray:
    """Input of the package's pictures and of their four quarters, (20, 3, H, W)."""
    preprocess = Preprocessor(preset_preprocessing(config))
    inputs = []
    for path in sample_pictures():
        with Image.open(path) as picture:
            width, height = picture.size
            boxes = [
                (x * width // 2, y * height // 2, (x + 1) * width // 2, (y + 1) * height // 2)
                for y in (0, 1)
                for x in (0, 1)
            ]
            parts = [picture.convert("RGB"), *(picture.convert("RGB").crop(box) for box in boxes)]
        inputs += [preprocess(part) for part in parts]
    return np.stack(inputs)


@torch.no_grad()
def with_published_shares(config: ModelConfig, images: np.ndarray) -> SelectiveViT:
    """Random weights whose gates keep the published share of the tokens of these pictures."""
    model = random_model(config, 0)
    assert isinstance(model, SelectiveViT)
    image = torch.from_numpy(images)
    gates = [gate for _, gate in model.gated_blocks()]
    margins: dict[int, torch.Tensor] = {}
    for number, gate in enumerate(gates):
        gate.mlp.fc1.weight.mul_(10)  # so that tokens differ
        gate.register_forward_hook(
            lambda _, __, output, key=number: margins.update({key: output.detach().clone()})
        )
    for number, share in enumerate(published_shares(len(gates))):
        model(image, "masked")
        limit = torch.quantile(margins[number][:, 1:].flatten(), 1 - share)
        gates[number].mlp.fc2.bias[0] -= limit
    for gate in gates:
        gate._forward_hooks.clear()
    return model


def bundles(folder: Path, images: np.ndarray) -> dict[str, Path]:
    """Export the dense network and the three graphs, if they are not there."""
    model = None
    paths = {}
    chosen: dict[str, dict[str, Any]] = {
        "masked": {},
        "exact": {"mode": "exact"},
        "capacity": {"mode": "capacity", "capacity": MEAN_COUNTS},
    }
    paths["dense"] = folder / "dense"
    if not paths["dense"].exists():
        export_bundle(None, paths["dense"], ExportOptions(preset(DENSE), parity_batches=(2,)))
    for name, fields in chosen.items():
        paths[name] = folder / name
        if not paths[name].exists():
            model = model or with_published_shares(preset(SVIT), images)
            model.config = preset(SVIT).replace(**fields)
            export_bundle(model, paths[name], ExportOptions(parity_batches=(2,)))
    return paths


def measure(paths: dict[str, Path], images: np.ndarray, batch: int, rounds: int) -> dict[str, Any]:
    """Median CPU milliseconds of a picture, by name, and the mean of the kept tokens."""
    networks = {name: load(path, threads=1) for name, path in paths.items()}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    kept = []
    for turn in range(rounds + 2):
        rows = np.arange(turn * batch, (turn + 1) * batch) % len(images)
        for name, network in networks.items():
            start = time.process_time()
            outcomes = network.outcomes(images[rows])
            if turn >= 2:
                seconds[name].append((time.process_time() - start) / batch)
            if name == "exact" and turn >= 2:
                kept += [outcome.kept for outcome in outcomes]
    dense = float(np.median(seconds["dense"]))
    return {
        "batch": batch,
        "cpu_ms_p50": {name: 1e3 * float(np.median(each)) for name, each in seconds.items()},
        "speedup": {name: dense / float(np.median(each)) for name, each in seconds.items()},
        "kept_mean": np.mean(kept, axis=0).round(1).tolist(),
    }


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the bundles go")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    arguments = parser.parse_args()
    images = pictures(preset(SVIT))
    paths = bundles(arguments.folder, images)
    rows = [measure(paths, images, b, max(5, arguments.rounds // b)) for b in arguments.batch]
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
