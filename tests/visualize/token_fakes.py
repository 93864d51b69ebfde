"""Pipelines on fakes, and pictures whose colours are known."""

from __future__ import annotations

import numpy as np

from sacvit_deploy.engines.registry import OpenedSessions
from sacvit_deploy.runtime.pipeline import Pipeline
from tests.fakes import SAC, fake_manifest, fake_sessions

GREY = 200
ROWS, COLUMNS = SAC.coarse_grid


def fake_pipeline(config=SAC, selection="host", eta=1.0) -> Pipeline:
    opened = OpenedSessions("onnxruntime", fake_sessions(config, selection))
    return Pipeline(fake_manifest(config, selection), opened, eta=eta)


def grey_picture() -> np.ndarray:
    """Of the shape the network takes, so that nothing is cropped."""
    return np.full((*SAC.image_size, 3), GREY, np.uint8)


def noise_picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SAC.image_size, 3), dtype=np.uint8)
