"""The share of pictures that is refined, imposed on any weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.evaluation.exit_sweep import candidate_exits
from sacvit_deploy.runtime.scheduler import FixedExit, Scheduler

_CLOSE_ENOUGH = 0.01
_MOST_BATCHES = 17


def batches_in_round(batch: int, share: float) -> int:
    """Number of batches that together can refine a share of their pictures, within 0.01.

    A batch of one picture cannot be split: of 13 such batches, 3 are refined for a share of 0.235.
    If no number up to 17 comes so close, the nearest is taken.
    """

    def distance(count: int) -> float:
        pictures = batch * count
        return abs(round(share * pictures) / pictures - share)

    counts = range(1, _MOST_BATCHES + 1)
    close = (count for count in counts if distance(count) <= _CLOSE_ENOUGH + 1e-9)
    return next(close, min(counts, key=distance))


def imposed_etas(
    scheduler: Scheduler,
    batches: Sequence[NDArray[Any]],
    share: float,
    comparison: Literal[">", ">="],
) -> list[float]:
    """Find an exit threshold for each batch that lets the wanted share of all be refined.

    It is a quantile of the batch's own confidences, so that it works on any weights. Equal
    confidences cannot be parted: then the nearest possible number is refined, and the next batches
    make up for the difference.

    Args:
        scheduler: Runs the first stage of each batch once.
        batches: Images (B, 3, H, W) each.
        share: Wanted share, in [0, 1].
        comparison: How the network compares a confidence with a threshold.
    """
    etas, owed = [], 0.0
    for images in batches:
        outcomes = scheduler.run(images, FixedExit(0.0))
        confidences = np.array([outcome.early_exit_confidence for outcome in outcomes])
        num_refined, candidates = candidate_exits(confidences, comparison)
        owed += share * len(images)
        nearest = int(np.abs(num_refined - owed).argmin())
        owed -= float(num_refined[nearest])
        etas.append(float(candidates[nearest]))
    return etas
