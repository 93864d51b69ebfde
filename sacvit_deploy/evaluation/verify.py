"""A bundle against the torch model it was made from. Needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy._optional import require
from sacvit_deploy.engines.registry import open_sessions
from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.runtime.decisions import (
    Agreement,
    AgreementLimits,
    Decisions,
    compare_decisions,
    scheduler_decisions,
)
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.runtime.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sacvit_deploy.bundle import Bundle
    from sacvit_deploy.exporters.parity import TensorParity
    from sacvit_deploy.model.two_stage import TwoStageViT
    from sacvit_deploy.model.vit import VisionTransformer
    from sacvit_deploy.runtime.pictures import PictureSource

_BATCH = 16
_PARITY_BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        graphs: The worst tensor of each graph, by role.
        agreement: Of the decisions; None for a network of one stage.
        passed: Whether every tensor is within tolerance and the agreement within its limits.
    """

    graphs: tuple[TensorParity, ...]
    agreement: Agreement | None
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, by the contract of `verify`."""
        graphs = [record.to_dict() for record in self.graphs]
        decisions = self.agreement.to_dict() if self.agreement else {}
        return {"graphs": graphs, **decisions, "passed": self.passed}


def verify_bundle(
    bundle: Bundle, pictures: Sequence[PictureSource], checkpoint: Path | None = None
) -> Verification:
    """Compare every FP32 graph, tensor by tensor, and then what is decided on pictures.

    Args:
        bundle: The candidate, run in ONNX Runtime.
        pictures: At least one.
        checkpoint: The reference; None makes random weights again from their seed.

    Raises:
        CheckpointError: The checkpoint does not fit, or none is given and none can be made.
        ImageError: A picture cannot be read.
        MissingDependencyError: torch is not installed.
    """
    require("torch", "Comparing a bundle with its model")
    from sacvit_deploy.exporters.parity import ParityInputs, measure_parity

    model = _reference(bundle, checkpoint)
    manifest = bundle.manifest
    graphs = [(g, bundle.graph_path(g)) for g in manifest.graphs if g.precision == "fp32"]
    inputs = ParityInputs(manifest.preprocessing, manifest.input_kind)
    records = measure_parity(model, graphs, inputs, _PARITY_BATCHES)
    worst = tuple(
        max((r for r in records if r.role == entry.role), key=lambda r: r.excess)
        for entry, _ in graphs
    )
    within = all(record.excess <= 1 for record in worst)
    if manifest.config.two_stage is None:
        return Verification(worst, None, within)
    agreement = _agreement(bundle, model, pictures)
    return Verification(worst, agreement, within and AgreementLimits().hold(agreement))


def _reference(bundle: Bundle, checkpoint: Path | None) -> TwoStageViT | VisionTransformer:
    from sacvit_deploy.exporters.model_source import (
        as_stored,
        checkpoint_model,
        model_of_origin,
    )

    manifest = bundle.manifest
    if checkpoint is not None:
        return as_stored(checkpoint_model(checkpoint, manifest.config), manifest.weights)
    model = model_of_origin(manifest.config, manifest.weights)
    if model is None:
        raise CheckpointError(
            f"The bundle was made from {manifest.weights.get('file')}, which it does not contain.",
            f"Name it: sacvit-deploy verify {bundle.path} --against CHECKPOINT",
        )
    return model


def _agreement(
    bundle: Bundle, model: TwoStageViT | VisionTransformer, pictures: Sequence[PictureSource]
) -> Agreement:
    manifest = bundle.manifest
    sessions = open_sessions(bundle, backend="onnxruntime").sessions
    scheduler = Scheduler(manifest.config, sessions, manifest.selection)
    as_graph = Preprocessor(manifest.preprocessing, manifest.input_kind)
    as_torch = Preprocessor(manifest.preprocessing, "float")
    candidate = scheduler_decisions(scheduler, _batches(as_graph, pictures))
    reference = Decisions.join(
        [_torch_decisions(model, images) for images in _batches(as_torch, pictures)]
    )
    return compare_decisions(reference, candidate, manifest.config, manifest.eta)


def _batches(
    preprocessor: Preprocessor, pictures: Sequence[PictureSource]
) -> Iterator[NDArray[Any]]:
    for start in range(0, len(pictures), _BATCH):
        yield np.stack([preprocessor(picture) for picture in pictures[start : start + _BATCH]])


def _torch_decisions(model: TwoStageViT | VisionTransformer, images: NDArray[Any]) -> Decisions:
    import torch

    with torch.no_grad():
        out = model(torch.from_numpy(images))
    return Decisions(
        out.early_exit.logits.numpy(), out.refined_logits.numpy(), out.selection.target.numpy()
    )
