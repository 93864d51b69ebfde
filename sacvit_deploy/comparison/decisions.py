"""Decisions of a two-stage network, and how far two networks have to agree.

A maximum error says little about a network that acts on a threshold and on a ranking. The questions
are whether the same pictures exit early, the same tokens are refined, and the same class comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.families import family_named
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.records import PROBABILITIES, Agreement, TensorParity
from sacvit_deploy.runtime.algorithm import confidence, exits, softmax
from sacvit_deploy.runtime.scheduler import Outcome
from sacvit_deploy.spec import Precision


@dataclass(frozen=True)
class Decisions:
    """Answers of both stages for n pictures, whatever the threshold.

    A network of one stage has its logits in both places, and no targets. Of a strict one, which
    computes some pictures again, the second logits are those that count.

    Attributes:
        early_logits: First stage, (n, C).
        refined_logits: Second stage for every picture, (n, C).
        target_index: Coarse indices of the targets, best first, (n, M).
        kept_mask: Tokens that each gate kept, 0 or 1, (n, gates, N+1); (n, 0, 0) without gates.
        features: Features of a backbone, (n, D, rows, columns) each, by name; else empty.
    """

    early_logits: NDArray[Any]
    refined_logits: NDArray[Any]
    target_index: NDArray[np.int64]
    kept_mask: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8))
    features: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def kept(self) -> NDArray[np.int64]:
        """Tokens that each gate kept, (n, gates); (n, 0) without gates."""
        kept: NDArray[np.int64] = self.kept_mask.sum(axis=2, dtype=np.int64)
        return kept

    def taken(self, rows: NDArray[np.int64]) -> Decisions:
        """Those of some pictures, by row."""
        return Decisions(
            self.early_logits[rows],
            self.refined_logits[rows],
            self.target_index[rows],
            self.kept_mask[rows] if self.kept_mask.size else self.kept_mask,
            {name: values[rows] for name, values in self.features.items()},
        )

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Decisions:
        """Collect outcomes of `EVERY_PICTURE`, at least one."""
        none, no_gates = np.empty(0, np.int64), np.empty((0, 0), np.uint8)
        outcomes = list(outcomes)
        names = outcomes[0].features or ()
        features = {name: np.stack([(o.features or {})[name] for o in outcomes]) for name in names}
        rows = [
            (
                each.early_logits,
                each.logits,
                none if each.target_index is None else each.target_index,
                no_gates if each.kept_mask is None else each.kept_mask,
            )
            for each in outcomes
        ]
        early, refined, targets, masks = map(np.stack, zip(*rows, strict=True))
        return cls(early, refined, targets, masks, features)


def compare_decisions(
    reference: Decisions,
    candidate: Decisions,
    config: ModelConfig,
    eta: float,
    temperature: float = 1.0,
) -> Agreement:
    """Measure the agreement of two networks at a threshold.

    Args:
        reference: Trusted decisions.
        candidate: Decisions in question, on the same pictures.
        config: Architecture of both; its exit comparison counts.
        eta: Exit threshold in [0, 1]; has no effect on a network of one stage.
        temperature: Divides the logits of both before the exit decision, above 0.
    """
    if reference.features:
        return _features_agreement(reference, candidate)
    both = (reference, candidate)
    leaves = [_leaves(decisions, config, eta, temperature) for decisions in both]
    labels = [
        np.where(left, d.early_logits.argmax(1), d.refined_logits.argmax(1))
        for left, d in zip(leaves, both, strict=True)
    ]
    wanted, found = (softmax(np.stack([d.early_logits, d.refined_logits])) for d in both)
    return Agreement(
        images=len(labels[0]),
        exit_flip_rate=float((leaves[0] != leaves[1]).mean()),
        target_overlap=_overlap(reference, candidate),
        label_agreement=float((labels[0] == labels[1]).mean()),
        max_probability_error=float(np.abs(wanted - found).max()),
    )


def agreement_in_words(agreement: Agreement, config: ModelConfig) -> str:
    """Say what two networks of a configuration decide alike, in one line."""
    tokens = family_named(config.family).chooses
    chosen = [f"{agreement.target_overlap:.1%} of {tokens} the same"] if tokens else []
    if agreement.max_tensor_error is not None:
        value = "mean" if tokens else "largest"
        features = f"features off by {agreement.max_tensor_error:.2g} of their {value} value"
        return ", ".join([features, *chosen])
    parts = [f"{agreement.label_agreement:.1%} of labels the same", *chosen]
    if config.two_stage is not None:
        parts.append(f"{agreement.exit_flip_rate:.1%} of exits flip")
    parts.append(f"probabilities off by {agreement.max_probability_error:.2g} at most")
    return ", ".join(parts)


def _features_agreement(reference: Decisions, candidate: Decisions) -> Agreement:
    """The agreement of two backbones.

    By rounding alone, one of some ten thousand decisions of gates falls otherwise, and its token
    then differs by a whole block. With gates the error is that of the mean, else of the largest.
    """
    measure = np.mean if reference.kept_mask.size else np.max
    errors = [
        measure(np.abs(candidate.features[name] - wanted)) / max(measure(np.abs(wanted)), 1e-30)
        for name, wanted in reference.features.items()
    ]
    return Agreement(
        images=len(reference.early_logits),
        exit_flip_rate=0.0,
        target_overlap=_overlap(reference, candidate),
        label_agreement=1.0,
        max_probability_error=0.0,
        max_tensor_error=float(max(errors)),
    )


def _overlap(reference: Decisions, candidate: Decisions) -> float:
    """Mean share of the targets, or of the kept tokens, that the candidate has too."""
    if reference.kept_mask.size:
        both = (reference.kept_mask & candidate.kept_mask).sum(axis=(1, 2))
        return float((both / np.maximum(reference.kept_mask.sum(axis=(1, 2)), 1)).mean())
    shared = [
        np.isin(other, targets).mean() if targets.size else 1.0
        for targets, other in zip(reference.target_index, candidate.target_index, strict=True)
    ]
    return float(np.mean(shared))


def _leaves(
    decisions: Decisions, config: ModelConfig, eta: float, temperature: float
) -> NDArray[np.bool_]:
    if config.two_stage is None:
        return np.zeros(len(decisions.early_logits), np.bool_)
    confidences = confidence(decisions.early_logits, temperature)
    return exits(confidences, eta, config.stages.exit_comparison)


@dataclass(frozen=True)
class MissedLimit:
    """A limit that does not hold.

    Attributes:
        limit: Name in `Limits`.
        found: Measured value; may be NaN or infinite.
        allowed: The limit.
        where: Which tensor of which graph; empty for a decision.
    """

    limit: str
    found: float
    allowed: float
    where: str = ""


_RANDOM_LABELS = 0.5


@dataclass(frozen=True)
class Limits:
    """Largest differences between two ways of running one network; the defaults are for FP32.

    All are in [0, 1]; `max_` and `min_` come before the name of a field of `Agreement`.

    Attributes:
        max_probability_error: Also for the probabilities of each graph fed by itself. 1 allows any.
        max_tensor_error: Error of any other tensor, over the largest value of the reference.
    """

    max_exit_flip_rate: float = 0.005
    min_target_overlap: float = 0.99
    min_label_agreement: float = 0.995
    max_probability_error: float = 1e-3
    max_tensor_error: float = 1e-3

    @classmethod
    def of(cls, precision: Precision, images: int, *, random: bool) -> Limits:
        """Choose the limits of a precision; for FP16 and INT8 no finer than one picture.

        On fewer than some hundred pictures a single one would miss the limit of a rate. Classes of
        random weights lie closer together than the rounding of a lower precision, so that their
        labels only have to agree by more than chance.

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

    def hold(self, agreement: Agreement) -> bool:
        """Whether an agreement is within all limits."""
        return not self.missed(agreement)

    def missed(
        self, agreement: Agreement | None, records: Iterable[TensorParity] = ()
    ) -> tuple[MissedLimit, ...]:
        """List the limits that do not hold: tensors first, then in the order of the fields."""
        missed = [self._bound(record) for record in records if self.excess(record) > 1]
        found = asdict(agreement) if agreement else {}
        for limit, allowed in asdict(self).items():
            value = found.get(limit, found.get(limit.partition("_")[2], allowed))
            value = allowed if value is None else value
            over = value - allowed if limit.startswith("max_") else allowed - value
            if not over <= 0:  # NaN is beyond every limit
                missed.append(MissedLimit(limit, value, allowed))
        return tuple(missed)

    def excess(self, record: TensorParity) -> float:
        """Divide the error of a tensor by its limit; above 1 the limit is missed."""
        bound = self._bound(record)
        return bound.found / max(bound.allowed, 1e-30)

    def _bound(self, record: TensorParity) -> MissedLimit:
        """Pair an error with its limit.

        Probabilities are absolute. Every other tensor is measured against its own largest value,
        since scores are of the order of 1e-3 and features of the order of 10.
        """
        limit, error = "max_tensor_error", record.relative_error
        if record.tensor == PROBABILITIES:
            limit, error = "max_probability_error", record.max_abs_error
        return MissedLimit(limit, error, getattr(self, limit), f"{record.tensor} of {record.role}")


# FP16 rounds every tensor by up to 5e-4 of its value, and INT8 by up to 4e-3 of its range; a dozen
# blocks add that up. A probability may change as long as the decision stays, so that the limits of
# lower precisions find broken graphs, not rounded ones.
LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(),
    "fp16": Limits(0.01, 0.98, 0.995, 1.0, 0.02),
    "int8": Limits(0.03, 0.90, 0.98, 1.0, 0.3),
}
"""Limits of each precision on many pictures, the finest precision first."""

EXPORT_LIMITS = Limits(max_probability_error=1e-4)
"""Limits of an exported graph, which computes the same operators as torch in the same precision."""
