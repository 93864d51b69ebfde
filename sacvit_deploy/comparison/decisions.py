"""What a two-stage network decides, and how far two ways of running it agree.

A maximum error says little about a network that acts on a threshold and on a ranking. What counts
is whether the same pictures leave early, the same tokens are looked at again, and the same class
comes out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.runtime.algorithm import confidence, exits, softmax
from sacvit_deploy.runtime.scheduler import EVERY_PICTURE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.runtime.scheduler import Outcome, Scheduler
    from sacvit_deploy.spec import Precision


@dataclass(frozen=True)
class Decisions:
    """Both stages' answers for n pictures, whatever the threshold.

    Attributes:
        early_logits: First stage, (n, C).
        refined_logits: Second stage for every picture, (n, C).
        target_index: Coarse tokens looked at again, (n, M).
    """

    early_logits: NDArray[Any]
    refined_logits: NDArray[Any]
    target_index: NDArray[np.int64]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Decisions:
        """Collect outcomes of `EVERY_PICTURE`; at least one.

        For a network of one stage its logits are in both places, and there are no targets, (n, 0).
        """
        late = [outcome.logits for outcome in outcomes]
        targets = [
            np.empty(0, np.int64) if outcome.target_index is None else outcome.target_index
            for outcome in outcomes
        ]
        early = [outcome.early_logits for outcome in outcomes]
        return cls(np.stack(early), np.stack(late), np.stack(targets))


@dataclass(frozen=True)
class Agreement:
    """How far a candidate decides as the reference does.

    Attributes:
        images: Pictures compared.
        exit_flip_rate: Share that leaves early in one and not in the other.
        target_overlap: Mean share of the reference's target tokens that the candidate has too.
        label_agreement: Share with the same final class, each with its own exit.
        max_probability_error: Largest difference of a probability in either stage.
    """

    images: int
    exit_flip_rate: float
    target_overlap: float
    label_agreement: float
    max_probability_error: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class AgreementLimits:
    """Beyond these a candidate is not the same network any more; the defaults are for FP32.

    Attributes:
        max_exit_flip_rate: In [0, 1].
        min_target_overlap: In [0, 1].
        min_label_agreement: In [0, 1].
        max_probability_error: In [0, 1]; 1 allows any.
    """

    max_exit_flip_rate: float = 0.005
    min_target_overlap: float = 0.99
    min_label_agreement: float = 0.995
    max_probability_error: float = 1e-3

    def hold(self, agreement: Agreement) -> bool:
        """Whether an agreement is within all limits."""
        return not self.missed(agreement)

    def missed(self, agreement: Agreement) -> tuple[MissedLimit, ...]:
        """The limits an agreement is beyond, in the order of the fields."""
        found = agreement.to_dict()
        missed = []
        for limit, allowed in asdict(self).items():
            value = found[limit] if limit in found else found[limit.partition("_")[2]]
            over = value - allowed if limit.startswith("max_") else allowed - value
            if not over <= 0:  # NaN is beyond every limit
                missed.append(MissedLimit(limit, value, allowed))
        return tuple(missed)


@dataclass(frozen=True)
class MissedLimit:
    """A limit, and what was found beyond it.

    Attributes:
        limit: Its name; begins with `max_` or `min_`.
        found: What was measured; may be NaN or infinite.
        allowed: The limit.
        where: Which tensor of which graph; empty for a decision.
    """

    limit: str
    found: float
    allowed: float
    where: str = ""


# Low precisions may change a probability as long as the decision stays.
LIMITS: dict[Precision, AgreementLimits] = {
    "fp32": AgreementLimits(),
    "fp16": AgreementLimits(0.01, 0.98, 0.995, 1.0),
    "int8": AgreementLimits(0.03, 0.90, 0.98, 1.0),
}
"""Beyond these, decisions are not those of the FP32 network any more."""

_RANDOM_LABELS = 0.5


def agreement_limits(precision: Precision, images: int, *, random: bool) -> AgreementLimits:
    """The limits of a precision; for FP16 and INT8 no finer than one picture.

    On fewer than some hundred pictures a single one would be beyond the limit of a rate. Classes of
    a network that was never trained lie closer together than the rounding of a lower precision, so
    that its labels have to agree by more than chance only.

    Args:
        precision: The lower one of the two that are compared.
        images: Pictures compared, at least one.
        random: Whether the weights were never trained.
    """
    limits = LIMITS[precision]
    if precision == "fp32":
        return limits
    labels = _RANDOM_LABELS if random else limits.min_label_agreement
    return replace(
        limits,
        max_exit_flip_rate=max(limits.max_exit_flip_rate, 1 / images),
        min_label_agreement=min(labels, 1 - 1 / images),
    )


def scheduler_decisions(scheduler: Scheduler, batches: Iterable[NDArray[Any]]) -> Decisions:
    """Run both stages for every picture.

    Args:
        scheduler: Runs the network.
        batches: Images (B, 3, H, W) as the graphs take them; at least one batch.
    """
    found = (scheduler.run(images, EVERY_PICTURE) for images in batches)
    return Decisions.of([outcome for outcomes in found for outcome in outcomes])


def compare_decisions(
    reference: Decisions,
    candidate: Decisions,
    config: ModelConfig,
    eta: float,
    temperature: float = 1.0,
) -> Agreement:
    """How far two ways of running one network agree at a threshold.

    Args:
        reference: The one to trust.
        candidate: The one in question, on the same pictures.
        config: Of the network; its exit comparison counts.
        eta: Exit threshold in [0, 1].
        temperature: Of the exit's confidence in both, above 0.
    """
    if config.two_stage is None:
        return compare_logits(reference.early_logits, candidate.early_logits)
    comparison = config.stages.exit_comparison
    leaves = [
        exits(confidence(d.early_logits, temperature), eta, comparison)
        for d in (reference, candidate)
    ]
    labels = [
        np.where(left, d.early_logits.argmax(1), d.refined_logits.argmax(1))
        for left, d in zip(leaves, (reference, candidate), strict=True)
    ]
    shared = [
        np.isin(found, wanted).mean()
        for wanted, found in zip(reference.target_index, candidate.target_index, strict=True)
    ]
    errors = [
        np.abs(softmax(wanted) - softmax(found)).max()
        for wanted, found in (
            (reference.early_logits, candidate.early_logits),
            (reference.refined_logits, candidate.refined_logits),
        )
    ]
    return Agreement(
        images=len(labels[0]),
        exit_flip_rate=float((leaves[0] != leaves[1]).mean()),
        target_overlap=float(np.mean(shared)),
        label_agreement=float((labels[0] == labels[1]).mean()),
        max_probability_error=float(max(errors)),
    )


def compare_logits(reference: NDArray[Any], candidate: NDArray[Any]) -> Agreement:
    """How far two ways of running a network of one stage agree.

    Args:
        reference: Logits of the one to trust, (n, C).
        candidate: Logits of the one in question, on the same pictures.
    """
    return Agreement(
        images=len(reference),
        exit_flip_rate=0.0,
        target_overlap=1.0,
        label_agreement=float((reference.argmax(1) == candidate.argmax(1)).mean()),
        max_probability_error=float(np.abs(softmax(reference) - softmax(candidate)).max()),
    )
