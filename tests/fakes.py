"""Stand-ins that need no inference runtime.

`FakeSession` computes every row by itself and in plain Python order, so that a batch, its
permutation and its single rows agree to the last bit. It reads the targets, their children and the
non-targets it is given, so that a wrong row or a wrong index changes the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.engines.registry import OpenedSessions
from sacvit_deploy.engines.session import closed_error
from sacvit_deploy.families.config import ModelConfig, graph_specs
from sacvit_deploy.families.two_stage import TwoStageConfig
from sacvit_deploy.manifest import Manifest
from sacvit_deploy.records import EngineEntry, EngineFlags, GraphEntry, WeightsOrigin
from sacvit_deploy.spec import (
    COARSE_EMBEDDINGS,
    COARSE_FEATURES,
    FINE_INDEX,
    IMAGE,
    LOGITS,
    NON_TARGET_INDEX,
    SCORE,
    TARGET_INDEX,
    Preprocessing,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from sacvit_deploy.spec import Role, Selection

SAC = ModelConfig("sac_vit", (24, 32), 4, 8, 4, 2, num_classes=7, two_stage=TwoStageConfig())
CF = SAC.replace(family="cf_vit", target_rounding="ceil", exit_comparison=">=", attention="joint")
LF = CF.replace(family="lf_vit", window=2)
DENSE = ModelConfig("vit", (24, 32), 4, 8, 4, 2, num_classes=7)

# For a graph of SAC, built on a Jetson Orin; nothing is there that could be loaded.
ENGINE = EngineEntry(
    role="early_exit",
    precision="fp16",
    file="engines/ee.fp16.tensorrt.engine",
    runtime="tensorrt",
    runtime_version="10.3.0",
    cuda_version="12.6",
    compute_capabilities=("8.7",),
    os="linux-aarch64",
    batch=(1, 8, 32),
    precision_share={"half": 1.0, "int8": 0.0, "float": 0.0},
    flags=EngineFlags(),
    build_s=1.0,
    bytes=4,
)


class FakeSession:
    """One graph of a bundle, in numpy.

    Attributes:
        calls: What it was fed.
        is_closed: Whether it refuses further calls.
    """

    provider = "FakeProvider"

    def __init__(self, config: ModelConfig, role: Role, selection: Selection = "host") -> None:
        self.config = config
        self.role = role
        self.calls: list[dict[str, NDArray[Any]]] = []
        self.is_closed = False
        specs = {spec.role: spec for spec in graph_specs(config, selection=selection)}
        self.inputs = specs[role].inputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self.is_closed:
            raise closed_error(f"The fake {self.role} session")
        assert feeds.keys() == {spec.name for spec in self.inputs}
        self.calls.append(dict(feeds))
        if self.role == "refine":
            return self._refine(feeds)
        pooled = np.stack([self._pool(image) for image in feeds[IMAGE]])
        outputs = {LOGITS: np.stack([self._logits(row, 1.0) for row in pooled])}
        if self.role == "early_exit":
            outputs |= self._hand_off(pooled)
        return outputs

    def close(self) -> None:
        self.is_closed = True

    def _hand_off(self, pooled: NDArray[Any]) -> dict[str, NDArray[Any]]:
        ramp = np.arange(1, self.config.embed_dim + 1, dtype=np.float32)
        # Rounded, so that there are ties among the scores.
        return {
            SCORE: np.round(pooled, 1).astype(np.float32),
            COARSE_EMBEDDINGS: pooled[:, :, None] * ramp,
            COARSE_FEATURES: pooled[:, :, None] * -ramp,
        }

    def _refine(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if SCORE not in feeds:
            names = TARGET_INDEX, FINE_INDEX, NON_TARGET_INDEX
            given = list(zip(*[feeds[name] for name in names], strict=True))
            return {LOGITS: self._refined_rows(feeds, given)}
        indices = [self._select(score.tolist()) for score in feeds[SCORE]]
        targets = np.array([target for target, _, _ in indices], dtype=np.int64)
        return {LOGITS: self._refined_rows(feeds, indices), TARGET_INDEX: targets}

    def _refined_rows(self, feeds, indices) -> NDArray[np.float32]:
        logits = []
        for row, (target, fine, non_target) in enumerate(indices):
            patches = self._fine_patches(feeds[IMAGE][row])
            parts = (
                feeds[COARSE_FEATURES][row][target, 0],
                patches[fine],
                feeds[COARSE_EMBEDDINGS][row][non_target, 1],
            )
            logits.append(self._logits(np.concatenate(parts), 9.0))
        return np.stack(logits)

    def _select(self, score: list[float]) -> tuple[list[int], list[int], list[int]]:
        """Selection and Eq. 11 once more, written in rows and columns."""
        order = sorted(range(len(score)), key=lambda i: (-score[i], i))
        target = order[: self.config.num_targets]
        columns = self.config.coarse_grid[1]
        fine = []
        for index in target:
            row, column = divmod(index, columns)
            fine += [
                (2 * row + down) * 2 * columns + 2 * column + right
                for down in (0, 1)
                for right in (0, 1)
            ]
        return target, fine, order[self.config.num_targets :]

    def _fine_patches(self, image: NDArray[Any]) -> NDArray[np.float32]:
        rows, columns = self.config.fine_grid
        tiles = (
            image.astype(np.float32).mean(axis=0).reshape(rows, image.shape[1] // rows, columns, -1)
        )
        return np.asarray(tiles.mean(axis=(1, 3)).ravel())

    def _pool(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Means of the coarse patches, (N,)."""
        rows, columns = self.config.fine_grid
        fine = self._fine_patches(image).reshape(rows // 2, 2, columns // 2, 2)
        return np.asarray(fine.mean(axis=(1, 3)).ravel())

    def _logits(self, values: NDArray[Any], phase: float) -> NDArray[np.float32]:
        """Any function of all values and of their order, (C,)."""
        weights = np.sin(phase + np.arange(len(values)))
        total = float(sum(float(v * w) for v, w in zip(values, weights, strict=True)))
        classes = np.arange(1, self.config.num_classes + 1)
        return np.asarray(2 * np.cos(total * classes), dtype=np.float32)


def fake_sessions(config: ModelConfig, selection: Selection = "host") -> dict[Role, FakeSession]:
    """One fake for every role of the network."""
    roles = [spec.role for spec in graph_specs(config, selection=selection)]
    return {role: FakeSession(config, role, selection) for role in roles}


def fake_opened(config: ModelConfig, selection: Selection = "host") -> OpenedSessions:
    """What the registry would return."""
    return OpenedSessions("fake", fake_sessions(config, selection))


def fake_manifest(
    config: ModelConfig = SAC, selection: Selection = "host", eta: float = 0.5
) -> Manifest:
    """A description without files, with the labels "class 0", "class 1", ..."""
    return Manifest(
        config=config,
        preprocessing=Preprocessing(config.image_size, crop_ratio=1.0),
        selection=selection,
        input_kind="float",
        eta=eta,
        labels=tuple(f"class {index}" for index in range(config.num_classes)),
        graphs=tuple(
            GraphEntry(spec.role, "fp32", spec.file, spec.inputs, spec.outputs)
            for spec in graph_specs(config, selection=selection)
        ),
        weights=WeightsOrigin("random", seed=0),
    )


def random_images(count: int, config: ModelConfig = SAC, seed: int = 0) -> NDArray[np.float32]:
    """Normalised input tensors, (count, 3, H, W)."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 3, *config.image_size)).astype(np.float32)


def random_pictures(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """HWC uint8 pictures of different sizes."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(20, 60, size=(count, 2)).tolist()
    return [generator.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes]
