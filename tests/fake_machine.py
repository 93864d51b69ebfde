"""A machine whose speed and a camera whose pictures a test decides; time is a number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.engines.registry import OpenedSessions
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.spec import COARSE_EMBEDDINGS, COARSE_FEATURES, IMAGE, LOGITS, SCORE
from tests.fakes import SAC, fake_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from sacvit_deploy.records import ExitCalibration
    from sacvit_deploy.runtime.result import Result

FRAME = np.zeros((24, 32, 3), np.uint8)


class Machine:
    """Both stages, with latencies and confidences drawn from a seed.

    Attributes:
        early_ms: Mean of the first stage for a picture.
        refine_ms: Mean of the second.
        noise: Standard deviation of either's logarithm.
        draw: Confidences of so many pictures.
    """

    def __init__(self, seed: int = 0, early_ms: float = 2.0, refine_ms: float = 6.0) -> None:
        self.generator = np.random.default_rng(seed)
        self.now_s = 0.0
        self.early_ms, self.refine_ms = early_ms, refine_ms
        self.noise = 0.0
        self.draw: Callable[[int], NDArray[Any]] = lambda n: self.generator.beta(2, 1, n)

    def clock(self) -> float:
        return self.now_s

    def work(self, ms: float, pictures: int) -> None:
        noise = np.exp(self.generator.normal(-(self.noise**2) / 2, self.noise))
        self.now_s += ms * noise * pictures / 1e3

    def pipeline(self, record: ExitCalibration | None = None, eta: float | None = None) -> Pipeline:
        from dataclasses import replace

        early, refine = _Early(self), _Refine(self)
        opened = OpenedSessions("onnxruntime", {"early_exit": early, "refine": refine})
        manifest = fake_manifest(SAC)
        if record is not None:
            manifest = replace(manifest, exit_calibrations=(record,))
        return Pipeline(manifest, opened, eta=eta, clock=self.clock)


class _Early:
    """All tokens are nought; only how sure it is differs."""

    provider = "FakeProvider"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        count, classes = len(feeds[IMAGE]), SAC.num_classes
        self.machine.work(self.machine.early_ms, count)
        sure = np.clip(self.machine.draw(count), 1 / classes + 1e-6, 1 - 1e-9)
        logits = np.zeros((count, classes))
        logits[:, 0] = np.log(sure * (classes - 1) / (1 - sure))
        tokens = np.zeros((count, SAC.num_coarse_tokens, SAC.embed_dim), np.float32)
        return {
            LOGITS: logits,
            SCORE: tokens[..., 0],
            COARSE_EMBEDDINGS: tokens,
            COARSE_FEATURES: tokens,
        }

    def close(self) -> None:
        pass


class _Refine:
    provider = "FakeProvider"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        count = len(feeds[IMAGE])
        self.machine.work(self.machine.refine_ms, count)
        return {LOGITS: np.zeros((count, SAC.num_classes), np.float32)}

    def close(self) -> None:
        pass


def classify(pipeline: Pipeline, frames: int) -> list[Result]:
    """So many frames of a camera, one at a time."""
    return list(pipeline.stream([FRAME] * frames, batch_size=1))
