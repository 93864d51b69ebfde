"""Answers for each labelled picture at one exit threshold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.evaluation.answers import StageAnswers
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.runtime.algorithm import confidence, exits
from sacvit_deploy.runtime.result import Result, result_from_outcome
from sacvit_deploy.runtime.result_file import Row
from sacvit_deploy.runtime.scheduler import Outcome
from sacvit_deploy.samples import Sample


@dataclass(frozen=True)
class Prediction:
    """Answer for one labelled picture.

    Attributes:
        sample: The picture.
        true_class_index: Its class as an index of the network.
        true_label: Name of that class.
        result: What `run` gives for the picture at this threshold.
    """

    sample: Sample
    true_class_index: int
    true_label: str
    result: Result

    @property
    def is_correct(self) -> bool:
        """Whether the answer is the true class."""
        return self.result.class_index == self.true_class_index

    def to_row(self) -> Row:
        """Return a row of `LABELLED_COLUMNS`."""
        values = self.result.to_dict()
        return {
            "image": values.pop("image"),
            "true_class_index": self.true_class_index,
            "true_label": self.true_label,
            "correct": self.is_correct,
            **values,
        }


@dataclass(frozen=True)
class Predictions:
    """Answers for n pictures, each made when it is asked for.

    Attributes:
        answers: Both stages, whatever the threshold.
        labels: Name of each class of the network.
        early_confidence: Confidence of the first stage at the temperature of the exit, (n,); None
            for a network of one stage.
        is_refined: Whether the answer is that of the second graph, (n,).
    """

    answers: StageAnswers
    labels: tuple[str, ...]
    early_confidence: NDArray[np.float64] | None
    is_refined: NDArray[np.bool_]

    @classmethod
    def at_exit(
        cls,
        answers: StageAnswers,
        config: ModelConfig,
        labels: tuple[str, ...],
        eta: float,
        temperature: float,
    ) -> Predictions:
        """Let pictures exit early as `run` does; eta has no effect on a network of one stage."""
        if config.two_stage is None:
            # A strict network computes some pictures again.
            return cls(answers, labels, None, answers.refine_ms > 0)
        confidences = confidence(answers.decisions.early_logits, temperature)
        leaves = exits(confidences, eta, config.two_stage.exit_comparison)
        return cls(answers, labels, confidences, ~leaves)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.is_refined)

    def __iter__(self) -> Iterator[Prediction]:
        """Yield the answers in the order of the data."""
        return map(self.prediction, range(len(self)))

    def prediction(self, row: int) -> Prediction:
        """Return the answer for one picture.

        Args:
            row: Position among the pictures that could be read.
        """
        sample, true = self.answers.samples[row], int(self.answers.class_index[row])
        result = result_from_outcome(self._outcome(row), self.labels, sample.path)
        return Prediction(sample, true, self.labels[true], result)

    def surest_mistakes(self, count: int) -> tuple[Prediction, ...]:
        """Return the wrong answers of the largest probability, the surest first.

        Args:
            count: Answers at most.
        """
        early, refined = self.answers.decisions.early_logits, self.answers.decisions.refined_logits
        answer = np.where(self.is_refined, refined.argmax(1), early.argmax(1))
        wrong = np.flatnonzero(answer != self.answers.class_index)
        logits = np.where(self.is_refined[wrong, None], refined[wrong], early[wrong])
        surest = np.argsort(-confidence(logits), kind="stable")[:count]
        return tuple(map(self.prediction, wrong[surest].tolist()))

    def _outcome(self, row: int) -> Outcome:
        decisions, is_refined = self.answers.decisions, bool(self.is_refined[row])
        has_targets = is_refined and decisions.target_index.size
        masks = decisions.kept_mask
        return Outcome(
            early_logits=decisions.early_logits[row],
            early_exit_confidence=(
                None if self.early_confidence is None else float(self.early_confidence[row])
            ),
            refined_logits=decisions.refined_logits[row] if is_refined else None,
            target_index=decisions.target_index[row] if has_targets else None,
            kept=masks[row].sum(axis=1, dtype=np.int64) if masks.size else None,
        )
