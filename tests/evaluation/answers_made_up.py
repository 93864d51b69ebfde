"""Made-up answers, whose best threshold is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sacvit_deploy.comparison.decisions import Decisions
from sacvit_deploy.evaluation.answers import StageAnswers
from sacvit_deploy.samples import Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

EARLY_MS, REFINE_MS = 2.0, 6.0


def made_up_answers(
    confidence: Sequence[float], early_correct: Sequence[bool], refined_correct: Sequence[bool]
) -> StageAnswers:
    """One picture for each confidence in (0.5, 1), of two classes; the true one is always 0."""
    confidences = np.asarray(confidence, dtype=np.float64)
    count = len(confidences)
    margin = np.log(confidences / (1 - confidences))
    early = np.where(early_correct, margin, -margin)
    late = np.where(refined_correct, 1.0, -1.0)
    return StageAnswers(
        decisions=Decisions(
            np.stack([early, np.zeros(count)], axis=1),
            np.stack([late, np.zeros(count)], axis=1),
            np.zeros((count, 1), np.int64),
        ),
        class_index=np.zeros(count, np.int64),
        samples=tuple(Sample(f"{index}.png", "") for index in range(count)),
        skipped=(),
        data_sha256="0" * 64,
        early_ms=np.full(count, EARLY_MS),
        refine_ms=np.full(count, REFINE_MS),
    )


def population(count: int, seed: int) -> StageAnswers:
    """Pictures with a well calibrated first stage, and a second that is correct in 90 %."""
    generator = np.random.default_rng(seed)
    confidences = generator.uniform(0.5, 1, count)
    correct = generator.random(count) < confidences
    return made_up_answers(
        confidences.tolist(), correct.tolist(), (generator.random(count) < 0.9).tolist()
    )
