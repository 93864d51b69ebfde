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
from sacvit_deploy.spec import IMAGE, KEPT, KEPT_MASK, LOGITS, OVERFLOW, Role

if TYPE_CHECKING:
    from sacvit_deploy.comparison.network import Network

    Arrays = dict[str, NDArray[Any]]


_BATCHES, _BATCHES_OF_LARGE = (1, 2, 7), (1, 2)
_LARGE_PICTURE = 512**2


def finite_fields(record: Any) -> dict[str, Any]:
    """Turn a dataclass into a mapping; NaN and infinity, which JSON cannot say, become None."""
    values = asdict(record).items()
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values}


def parity_batches(crop: tuple[int, int]) -> tuple[int, ...]:
    """Batch sizes to compare networks at; of large pictures, as for detection, only few fit."""
    return _BATCHES if math.prod(crop) <= _LARGE_PICTURE else _BATCHES_OF_LARGE


def random_pixels(crop: tuple[int, int], batch: int) -> NDArray[np.uint8]:
    """Draw a batch of images, (batch, 3, *crop); the same batch size gives the same images."""
    return np.random.default_rng(batch).integers(0, 256, (batch, 3, *crop), dtype=np.uint8)


def compare_tensors(
    reference: Network, candidate: Network, batches: Iterable[NDArray[np.uint8]]
) -> list[TensorParity]:
    """Measure every output of every graph, at each batch.

    A later graph gets the tensors of the reference, so that its error is its own. A mask of kept
    tokens differs by the share of the tokens that are kept by one network alone. Its counts are
    left out, and other tensors are compared on the pictures of equal masks: where a gate decided
    differently, so would they by right. If no masks are equal, the relative error is that of the
    mean, which a single decision among thousands does not change.

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
            masks = wanted.get(KEPT_MASK), found.get(KEPT_MASK)
            alike, measure = _alike(*masks)
            if masks[0] is not None:
                records.append(TensorParity(role, KEPT_MASK, len(pixels), *_share(*masks)))
            names = [name for name in found if name not in (KEPT_MASK, KEPT, OVERFLOW)]
            pairs = [(name, wanted[name][alike], found[name][alike]) for name in names]
            with np.errstate(invalid="ignore"):
                if LOGITS in found:
                    logits = [softmax(tensors[LOGITS][alike]) for tensors in (wanted, found)]
                    pairs.append((PROBABILITIES, logits[0], logits[1]))
                records += [
                    TensorParity(role, name, len(pixels), *_error(w, f, measure))
                    for name, w, f in pairs
                ]
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
        first = next(iter(network.sessions))
        if role == first:
            return {IMAGE: image}
        hand_off = {**self.tensors[first], IMAGE: image}
        del hand_off[LOGITS]
        feeds: Any = network.scheduler.refine_feeds(hand_off, np.arange(len(image)))
        return dict(feeds)


def _alike(wanted: NDArray[Any] | None, found: NDArray[Any] | None) -> tuple[Any, Any]:
    """Rows to compare, and how to measure them: see `compare_tensors`."""
    if wanted is None or found is None:
        return slice(None), np.max
    alike = np.all(wanted == found, axis=tuple(range(1, wanted.ndim)))
    return (alike, np.max) if alike.any() else (slice(None), np.mean)


def _share(wanted: Any, found: Any) -> tuple[float, float]:
    """Whether any element of two masks differs, and the share that does."""
    differs = wanted != found
    return float(differs.any()), float(differs.mean())


def _error(wanted: NDArray[Any], found: NDArray[Any], measure: Any) -> tuple[float, float]:
    """The largest error, and the error over the value, each measured over all elements."""
    difference = np.abs(found.astype(np.float64) - wanted)
    if not np.isfinite(difference).all():
        return math.inf, math.inf
    return float(difference.max()), float(
        measure(difference) / max(float(measure(np.abs(wanted))), 1e-30)
    )
