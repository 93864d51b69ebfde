"""Does the graph compute what the torch model computes? Measured at every export."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from sacvit_deploy.errors import ParityError
from sacvit_deploy.model.two_stage import TwoStageViT
from sacvit_deploy.spec import IMAGE, LOGITS, SURVIVOR_ROWS, TARGET_INDEX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sacvit_deploy.manifest import GraphEntry
    from sacvit_deploy.model.vit import VisionTransformer
    from sacvit_deploy.spec import GraphSpec, InputKind, Preprocessing

    Arrays = dict[str, NDArray[Any]]

PROBABILITIES = "probabilities"

# Probabilities are absolute. Every other tensor is measured against its own largest value, since
# scores are of the order of 1e-3 and features of the order of 10.
PROBABILITY_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class TensorParity:
    """How far one output of one graph is from torch, at one batch size.

    Attributes:
        role: Of the graph.
        tensor: Name of the output; `probabilities` is the softmax of the logits.
        batch: Images in the batch.
        max_abs_error: Largest absolute difference; infinite if a value is not finite.
        relative_error: The same over the largest absolute value of the reference.
    """

    role: str
    tensor: str
    batch: int
    max_abs_error: float
    relative_error: float

    @property
    def excess(self) -> float:
        """Error over tolerance: above 1 the export fails."""
        if self.tensor == PROBABILITIES:
            return self.max_abs_error / PROBABILITY_TOLERANCE
        return self.relative_error / RELATIVE_TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite error, which JSON cannot say, becomes null."""
        values = dataclasses.asdict(self)
        return {k: None if v == float("inf") else v for k, v in values.items()}


@dataclass(frozen=True)
class ParityInputs:
    """How the pictures for a comparison are made.

    Attributes:
        preprocessing: Mean and std of the normalisation.
        input_kind: What the graphs take; torch always gets the normalised image.
        seed: Of the random pixels.
    """

    preprocessing: Preprocessing
    input_kind: InputKind = "float"
    seed: int = 0

    def make(self, batch: int) -> tuple[torch.Tensor, NDArray[Any]]:
        """Random pixels: normalised for torch, and as the graphs take them."""
        height, width = self.preprocessing.crop
        generator = np.random.default_rng(self.seed + batch)
        pixels = generator.integers(0, 256, (batch, 3, height, width), dtype=np.uint8)
        mean = np.array(self.preprocessing.mean, dtype=np.float32).reshape(3, 1, 1)
        std = np.array(self.preprocessing.std, dtype=np.float32).reshape(3, 1, 1)
        normalised = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        fed = pixels if self.input_kind == "uint8" else normalised
        return torch.from_numpy(normalised), fed


def measure_parity(
    model: TwoStageViT | VisionTransformer,
    graphs: Sequence[tuple[GraphSpec | GraphEntry, Path]],
    inputs: ParityInputs,
    batches: Sequence[int],
) -> list[TensorParity]:
    """Run every graph in ONNX Runtime on what torch gives it.

    The refine graph gets torch's own early-exit tensors, so that a difference is that graph's.

    Args:
        model: The reference.
        graphs: Contract and file of each.
        inputs: Pictures to use.
        batches: Batch sizes.
    """
    model.eval()
    records = []
    sessions = [(spec, OnnxRuntimeSession(path)) for spec, path in graphs]
    for batch in batches:
        image, fed = inputs.make(batch)
        known = _reference(model, image)
        known["fed"][IMAGE] = fed
        for spec, session in sessions:
            feeds = {tensor.name: known["fed"][tensor.name] for tensor in spec.inputs}
            found = session.run(feeds)
            records += _compare(spec.role, batch, known[spec.role], found)
    return records


def check_parity(records: Sequence[TensorParity]) -> None:
    """Refuse a graph that is beyond its tolerance.

    Raises:
        ParityError: It names the worst tensor.
    """
    worst = max(records, key=lambda record: record.excess)
    if worst.excess > 1:
        wanted = (
            f"{PROBABILITY_TOLERANCE:g} absolute"
            if worst.tensor == PROBABILITIES
            else f"{RELATIVE_TOLERANCE:g} of the largest value"
        )
        raise ParityError(
            f"The {worst.role} graph differs from torch. Worst tensor: {worst.tensor} at batch "
            f"{worst.batch}, by {worst.max_abs_error:.3g} ({worst.relative_error:.3g} of its "
            f"largest value); allowed: {wanted}.",
            "Nothing was written. Try --opset 18, or other versions of torch and onnxscript; if it "
            "stays, please report it with the output of: sacvit-deploy doctor",
        )


@torch.no_grad()
def _reference(model: TwoStageViT | VisionTransformer, image: torch.Tensor) -> dict[str, Arrays]:
    """What torch gives, by role; and under `fed` everything a graph may take besides the image."""
    if isinstance(model, TwoStageViT):
        return _two_stage_reference(model, image)
    return {"fed": {}, "single": {LOGITS: model(image).numpy()}}


def _two_stage_reference(model: TwoStageViT, image: torch.Tensor) -> dict[str, Arrays]:
    out = model(image)
    coarse, selection = out.early_exit, out.selection
    handed = {
        "score": coarse.score,
        "coarse_embeddings": coarse.embeddings,
        "coarse_features": coarse.features,
    }
    indices = {
        TARGET_INDEX: selection.target,
        "non_target_index": selection.non_target,
        "fine_index": selection.fine,
        SURVIVOR_ROWS: torch.arange(len(image)),
    }
    early = {LOGITS: coarse.logits, **handed}
    refined = {LOGITS: out.refined_logits, TARGET_INDEX: selection.target}
    return {
        "fed": _arrays({**handed, **indices}),
        "early_exit": _arrays(early),
        "refine": _arrays(refined),
    }


def _arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _compare(role: str, batch: int, wanted: Arrays, found: Arrays) -> list[TensorParity]:
    pairs = {name: (wanted[name], found[name]) for name in found}
    pairs[PROBABILITIES] = (_softmax(wanted[LOGITS]), _softmax(found[LOGITS]))
    return [TensorParity(role, name, batch, *_error(*pair)) for name, pair in pairs.items()]


def _error(wanted: NDArray[Any], found: NDArray[Any]) -> tuple[float, float]:
    difference = np.abs(found.astype(np.float64) - wanted)
    if not np.isfinite(difference).all():
        return math.inf, math.inf
    worst = float(difference.max())
    return worst, worst / max(float(np.abs(wanted).max()), 1e-30)


def _softmax(logits: NDArray[Any]) -> NDArray[Any]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    result: NDArray[Any] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result
