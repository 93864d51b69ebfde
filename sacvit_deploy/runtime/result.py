"""The result of one picture, as a user gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.decode import OPTIONAL, encode
from sacvit_deploy.runtime.algorithm import softmax
from sacvit_deploy.spec import Role

if TYPE_CHECKING:
    from sacvit_deploy.runtime.scheduler import Outcome


@dataclass(frozen=True)
class Result:
    """One classified picture.

    Attributes:
        image: Path as it was given; None for a picture that has none.
        class_index: Class with the largest logit; of equal ones the lowest index.
        label: Name of the class.
        probability: Softmax probability of the class at temperature 1, in (0, 1].
        stage: Graph the picture left from: `early_exit` or `refine`, or `single` for a network of
            one stage, whose `refine` computes again what overflows its capacity.
        early_exit_probability: Largest probability after the first stage, at the temperature of
            the exit; it is compared with `eta`. None for `single`.
        top5: The five best (class index, label, probability), best first; fewer if there are
            fewer classes.
        target_tokens: Coarse tokens the second stage looked at in full resolution, best first; None
            unless `refine`.
        kept_tokens: Tokens that each gate kept, the class token included, in the order of the
            blocks; None for a network without gates.
        index: Position in its stream, from 0; None outside of a stream. Results are compared
            without it.
    """

    image: str | None
    class_index: int
    label: str
    probability: float
    stage: Role
    early_exit_probability: float | None
    top5: tuple[tuple[int, str, float], ...]
    target_tokens: tuple[int, ...] | None = field(default=None, metadata=OPTIONAL)
    kept_tokens: tuple[int, ...] | None = field(default=None, metadata=OPTIONAL)
    index: int | None = field(default=None, compare=False, metadata=OPTIONAL)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; optional ones only where they are not None."""
        values: dict[str, Any] = encode(self)
        return values


def result_from_outcome(
    outcome: Outcome, labels: Sequence[str], image: str | None, index: int | None = None
) -> Result:
    """Name the classes of one outcome; the index is its position in a stream."""
    # By logit: two probabilities can round to the same number.
    order = np.argsort(-outcome.logits, kind="stable")[:5].tolist()
    probabilities = softmax(outcome.logits)
    top5 = tuple((index, labels[index], float(probabilities[index])) for index in order)
    targets = outcome.target_index
    return Result(
        image=image,
        class_index=top5[0][0],
        label=top5[0][1],
        probability=top5[0][2],
        stage=outcome.stage,
        early_exit_probability=outcome.early_exit_confidence,
        top5=top5,
        target_tokens=None if targets is None else tuple(targets.tolist()),
        kept_tokens=None if outcome.kept is None else tuple(outcome.kept.tolist()),
        index=index,
    )
