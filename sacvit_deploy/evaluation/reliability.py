"""Whether a network is right as often as it is sure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 15
"""As many as Guo et al. take."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Pictures of about the same confidence.

    Attributes:
        lower: Smallest confidence, not included but in the first bin.
        upper: Largest confidence, included.
        images: How many; the two means are 0 where it is 0.
        confidence: Their mean confidence.
        accuracy: Their share of right answers.
    """

    lower: float
    upper: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy.

    Attributes:
        ece: Expected calibration error: the mean distance of the two, in [0, 1] (Guo et al. 2017,
            "On Calibration of Modern Neural Networks", eq. 3).
        bins: Of equal width over [0, 1].
    """

    ece: float
    bins: tuple[ReliabilityBin, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"ece": self.ece, "reliability": [asdict(each) for each in self.bins]}


def reliability(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = BINS
) -> Reliability:
    """Compare confidence and accuracy bin by bin.

    Args:
        confidence: Largest probability of each picture, (n,), in (0, 1], n at least 1.
        right: Whether that class was the true one, (n,).
        bins: Of equal width, 1 or more.
    """
    # The upper end of a bin belongs to it, so that a confidence of 1 is in the last.
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    filled = np.maximum(images, 1)
    sure = np.bincount(place, confidence, minlength=bins) / filled
    good = np.bincount(place, right.astype(np.float64), minlength=bins) / filled
    ece = float((np.abs(sure - good) * images).sum() / len(confidence))
    edges = np.linspace(0, 1, bins + 1).tolist()
    rows = zip(edges, edges[1:], images.tolist(), sure.tolist(), good.tolist(), strict=False)
    return Reliability(ece, tuple(ReliabilityBin(*row) for row in rows))
