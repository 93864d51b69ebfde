"""Do two ways of running a network compute the same? Measured at every export.

Needs torch only where one of them is torch.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.comparison.network import Network
from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from sacvit_deploy.errors import ParityError
from sacvit_deploy.families.config import graph_specs
from sacvit_deploy.runtime.algorithm import fine_index, select_tokens, softmax
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.spec import (
    FINE_INDEX,
    IMAGE,
    LOGITS,
    NON_TARGET_INDEX,
    SCORE,
    SURVIVOR_ROWS,
    TARGET_INDEX,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sacvit_deploy.manifest import GraphEntry
    from sacvit_deploy.model.vit import Backbone
    from sacvit_deploy.spec import GraphSpec, InputKind, Preprocessing, Role

    Arrays = dict[str, NDArray[Any]]


PROBABILITIES = "probabilities"

# Probabilities are absolute. Every other tensor is measured against its own largest value, since
# scores are of the order of 1e-3 and features of the order of 10.
PROBABILITY_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class TensorParity:
    """How far one output of one graph is from the reference, at one batch size.

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

    def pixels(self, batch: int) -> NDArray[np.uint8]:
        """Random ones, (batch, 3, H, W)."""
        height, width = self.preprocessing.crop
        generator = np.random.default_rng(self.seed + batch)
        return generator.integers(0, 256, (batch, 3, height, width), dtype=np.uint8)


def measure_parity(
    model: Backbone,
    graphs: Sequence[tuple[GraphSpec | GraphEntry, Path]],
    inputs: ParityInputs,
    batches: Sequence[int],
) -> list[TensorParity]:
    """Run every graph in ONNX Runtime on what torch gives it.

    Args:
        model: The reference.
        graphs: Contract and file of each.
        inputs: Pictures to use.
        batches: Batch sizes.
    """
    from sacvit_deploy.comparison.torch_network import torch_network

    by_host = any(tensor.name == TARGET_INDEX for spec, _ in graphs for tensor in spec.inputs)
    candidate = Network(
        "ONNX",
        model.config,
        Preprocessor(inputs.preprocessing, inputs.input_kind),
        {spec.role: OnnxRuntimeSession(path) for spec, path in graphs},
        "host" if by_host else "graph",
    )
    reference = torch_network(model, inputs.preprocessing)
    return compare_tensors(reference, candidate, map(inputs.pixels, batches))


def compare_tensors(
    reference: Network, candidate: Network, batches: Iterable[NDArray[np.uint8]]
) -> list[TensorParity]:
    """How far every output of every graph is from the reference, at each batch.

    A later graph gets the reference's own tensors, so that a difference is that graph's.

    Args:
        reference: The one to trust.
        candidate: The one in question.
        batches: Pixels, (B, 3, H, W).
    """
    records: list[TensorParity] = []
    for pixels in batches:
        known = reference_tensors(reference, pixels)
        for role, session in candidate.sessions.items():
            found = session.run(known.feeds(candidate, role))
            records += _compare(role, len(pixels), known.outputs[role], found)
    return records


@dataclass(frozen=True)
class ReferenceTensors:
    """Everything a network gives for one batch.

    Attributes:
        pixels: The batch, (B, 3, H, W).
        outputs: Of each graph.
        between: What is handed from the first graph to the second, whoever chooses the tokens.
    """

    pixels: NDArray[np.uint8]
    outputs: dict[Role, Arrays]
    between: Arrays

    def feeds(self, network: Network, role: Role) -> Arrays:
        """What a graph of any network of this configuration is to be fed."""
        everything = {**self.between, IMAGE: _as_input(network, self.pixels)}
        return {name: everything[name] for name in _inputs(network, role)}


def reference_tensors(network: Network, pixels: NDArray[np.uint8]) -> ReferenceTensors:
    """Run a network, the second stage for all pictures.

    Args:
        network: Any.
        pixels: (B, 3, H, W), already cropped to the size it takes.
    """
    first: Role = "single" if "single" in network.sessions else "early_exit"
    found = network.sessions[first].run({IMAGE: _as_input(network, pixels)})
    known = ReferenceTensors(pixels, {first: found}, {})
    if SCORE in found:
        target, non_target = select_tokens(found[SCORE], network.config.num_targets)
        known.between.update(found)
        known.between[TARGET_INDEX] = target
        known.between[NON_TARGET_INDEX] = non_target
        known.between[FINE_INDEX] = fine_index(target, network.config.coarse_grid[1])
        known.between[SURVIVOR_ROWS] = np.arange(len(pixels), dtype=np.int64)
        refined = network.sessions["refine"].run(known.feeds(network, "refine"))
        known.outputs["refine"] = {TARGET_INDEX: target, **refined}
    return known


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


def _inputs(network: Network, role: Role) -> list[str]:
    specs = graph_specs(network.config, selection=network.selection)
    return [tensor.name for spec in specs if spec.role == role for tensor in spec.inputs]


def _as_input(network: Network, pixels: NDArray[np.uint8]) -> NDArray[Any]:
    preprocess = network.preprocess
    return preprocess.normalize(pixels) if preprocess.input_kind == "float" else pixels


def _compare(role: str, batch: int, wanted: Arrays, found: Arrays) -> list[TensorParity]:
    pairs = {name: (wanted[name], found[name]) for name in found}
    with np.errstate(invalid="ignore"):
        pairs[PROBABILITIES] = (softmax(wanted[LOGITS]), softmax(found[LOGITS]))
    return [TensorParity(role, name, batch, *_error(*pair)) for name, pair in pairs.items()]


def _error(wanted: NDArray[Any], found: NDArray[Any]) -> tuple[float, float]:
    with np.errstate(invalid="ignore"):
        difference = np.abs(found.astype(np.float64) - wanted)
    if not np.isfinite(difference).all():
        return math.inf, math.inf
    worst = float(difference.max())
    return worst, worst / max(float(np.abs(wanted).max()), 1e-30)
