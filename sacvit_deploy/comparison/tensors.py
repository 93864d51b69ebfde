"""Two networks compared tensor by tensor: every output of every graph, at several batch sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.comparison.decisions import EXPORT_LIMITS
from sacvit_deploy.errors import ParityError
from sacvit_deploy.records import PROBABILITIES, TensorParity
from sacvit_deploy.runtime.algorithm import softmax
from sacvit_deploy.spec import IMAGE, LOGITS, Role

if TYPE_CHECKING:
    from sacvit_deploy.comparison.network import Network

    Arrays = dict[str, NDArray[Any]]


def finite_fields(record: Any) -> dict[str, Any]:
    """Turn a dataclass into a mapping; NaN and infinity, which JSON cannot say, become None."""
    values = asdict(record).items()
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values}


def random_pixels(crop: tuple[int, int], batch: int) -> NDArray[np.uint8]:
    """Draw a batch of images, (batch, 3, *crop); the same batch size gives the same images."""
    return np.random.default_rng(batch).integers(0, 256, (batch, 3, *crop), dtype=np.uint8)


def compare_tensors(
    reference: Network, candidate: Network, batches: Iterable[NDArray[np.uint8]]
) -> list[TensorParity]:
    """Measure every output of every graph, at each batch.

    A later graph gets the tensors of the reference, so that its error is its own.

    Args:
        reference: Trusted network.
        candidate: Network in question.
        batches: Pixels, (B, 3, H, W).

    Raises:
        EngineError: A session failed.
    """
    records: list[TensorParity] = []
    for pixels in batches:
        known = ReferenceTensors(reference, pixels)
        for role, session in candidate.sessions.items():
            wanted, found = known.tensors[role], session.run(known.feeds(candidate, role))
            pairs = [(name, wanted[name], found[name]) for name in found]
            with np.errstate(invalid="ignore"):
                pairs.append((PROBABILITIES, softmax(wanted[LOGITS]), softmax(found[LOGITS])))
                records += [TensorParity(role, n, len(pixels), *_error(w, f)) for n, w, f in pairs]
    return records


def check_parity(records: Sequence[TensorParity]) -> None:
    """Refuse an exported graph that is beyond its limits.

    Raises:
        ParityError: It names the worst tensor.
    """
    worst = max(records, key=EXPORT_LIMITS.excess)
    if missed := EXPORT_LIMITS.missed(None, [worst]):
        unit = "absolute" if worst.tensor == PROBABILITIES else "of the largest value"
        raise ParityError(
            f"The {worst.role} graph differs from torch. Worst tensor: {worst.tensor} at batch "
            f"{worst.batch}, by {worst.max_abs_error:.3g} ({worst.relative_error:.3g} of its "
            f"largest value); allowed: {missed[0].allowed:g} {unit}.",
            "Nothing was written. Try --opset 18, or other versions of torch and onnxscript; if it "
            "stays, please report it with the output of: sacvit-deploy doctor",
        )


class ReferenceTensors:
    """Inputs and outputs of every graph of a network for one batch, as it runs them when made.

    The second stage runs on all pictures. Unlike the scheduler it lets NaN and infinity pass: the
    question is in which tensor they are.

    Args:
        network: Trusted network, with one or two stages.
        pixels: The batch, (B, 3, H, W), cropped to its input size.

    Attributes:
        tensors: By role and by name.

    Raises:
        EngineError: A session failed.
    """

    def __init__(self, network: Network, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels
        self.tensors: dict[Role, Arrays] = {}
        for role, session in network.sessions.items():
            feeds = self.feeds(network, role)
            self.tensors[role] = {**feeds, **session.run(feeds)}

    def feeds(self, network: Network, role: Role) -> Arrays:
        """Make the inputs of one graph of any network of this configuration."""
        image = network.images(self._pixels)
        if role != "refine":
            return {IMAGE: image}
        hand_off = {**self.tensors["early_exit"], IMAGE: image}
        del hand_off[LOGITS]
        feeds: Any = network.scheduler.refine_feeds(hand_off, np.arange(len(image)))
        return dict(feeds)


def _error(wanted: NDArray[Any], found: NDArray[Any]) -> tuple[float, float]:
    difference = np.abs(found.astype(np.float64) - wanted)
    if not np.isfinite(difference).all():
        return math.inf, math.inf
    worst = float(difference.max())
    return worst, worst / max(float(np.abs(wanted).max()), 1e-30)
