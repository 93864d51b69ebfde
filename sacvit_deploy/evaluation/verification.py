"""What a verification found, and the limits it is held against."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sacvit_deploy.exporters.parity import PROBABILITIES, RELATIVE_TOLERANCE, TensorParity
from sacvit_deploy.runtime.decisions import (
    Agreement,
    AgreementLimits,
    MissedLimit,
    agreement_limits,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sacvit_deploy.bundle import Precision
    from sacvit_deploy.exporters.precision.layers import LayerError

# FP16 rounds every tensor by up to 5e-4 of its value, and INT8 by up to 4e-3 of its range; a dozen
# blocks add that up. Decisions are what counts, so that these find what is broken, not what is
# rounded.
TENSOR_LIMITS: dict[Precision, float] = {"fp32": RELATIVE_TOLERANCE, "fp16": 0.02, "int8": 0.3}


@dataclass(frozen=True)
class VerifyLimits:
    """Beyond these a verification fails.

    Attributes:
        decisions: Of the agreement.
        max_tensor_error: Largest error of an output of a graph over the largest value of the
            reference; `--layers` measures every layer against it too.
    """

    decisions: AgreementLimits = dataclasses.field(default_factory=AgreementLimits)
    max_tensor_error: float = RELATIVE_TOLERANCE

    @classmethod
    def default(cls, precision: Precision, images: int, *, random: bool) -> VerifyLimits:
        """Those of a precision; arguments as in `agreement_limits`."""
        return cls(agreement_limits(precision, images, random=random), TENSOR_LIMITS[precision])

    def with_values(self, values: Mapping[str, float]) -> VerifyLimits:
        """The same with other values, by name of the limit."""
        own = {k: v for k, v in values.items() if k == "max_tensor_error"}
        rest = {k: v for k, v in values.items() if k not in own}
        return dataclasses.replace(
            self, decisions=dataclasses.replace(self.decisions, **rest), **own
        )

    def excess(self, record: TensorParity) -> float:
        """Error over limit; above 1 it is missed."""
        missed = self._of(record)
        return missed.found / max(missed.allowed, 1e-30)

    def missed(
        self, records: Sequence[TensorParity], agreement: Agreement | None
    ) -> tuple[MissedLimit, ...]:
        """The limits that are missed, tensors first."""
        tensors = tuple(self._of(record) for record in records if self.excess(record) > 1)
        return tensors + (self.decisions.missed(agreement) if agreement else ())

    def to_dict(self) -> dict[str, float]:
        """JSON-ready, every limit by its name."""
        return {
            **dataclasses.asdict(self.decisions),
            "max_tensor_error": self.max_tensor_error,
        }

    def _of(self, record: TensorParity) -> MissedLimit:
        where = f"{record.tensor} of {record.role}"
        if record.tensor == PROBABILITIES:
            allowed = self.decisions.max_probability_error
            return MissedLimit("max_probability_error", record.max_abs_error, allowed, where)
        return MissedLimit("max_tensor_error", record.relative_error, self.max_tensor_error, where)


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        reference: Name of what is trusted.
        candidate: Name of what is in question.
        graphs: The worst tensor of each graph, by role.
        agreement: Of the decisions; None where a graph gives no finite numbers.
        limits: That were applied.
        missed: Those that do not hold.
        layers: Error at every layer, in the order of the network; None if it was not asked for.
    """

    reference: str
    candidate: str
    graphs: tuple[TensorParity, ...]
    agreement: Agreement | None
    limits: VerifyLimits = dataclasses.field(default_factory=VerifyLimits)
    missed: tuple[MissedLimit, ...] = ()
    layers: tuple[LayerError, ...] | None = None

    @property
    def passed(self) -> bool:
        """Whether every limit holds."""
        return not self.missed

    @property
    def worst_step(self) -> LayerError | None:
        """The first layer that is not finite, or else where the error grows most."""
        if not self.layers:
            return None
        from sacvit_deploy.exporters.precision.layers import worst_step

        return worst_step(self.layers)

    @property
    def first_diverging(self) -> LayerError | None:
        """The first layer beyond `max_tensor_error`."""
        beyond = (layer for layer in self.layers or () if self.diverges(layer))
        return next(beyond, None)

    def diverges(self, layer: LayerError) -> bool:
        """Whether a layer is beyond its limit."""
        return not layer.error <= self.limits.max_tensor_error

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, by the contract of `verify`; what is not finite or not known is null."""
        nothing = dict.fromkeys(field.name for field in dataclasses.fields(Agreement))
        decisions = self.agreement.to_dict() if self.agreement else nothing
        document = {
            "reference": self.reference,
            "candidate": self.candidate,
            "graphs": [record.to_dict() for record in self.graphs],
            **decisions,
            "limits": self.limits.to_dict(),
            "missed": [_finite(dataclasses.asdict(missed)) for missed in self.missed],
            "passed": self.passed,
        }
        if self.layers is not None:
            document["layers"] = [_finite(dataclasses.asdict(layer)) for layer in self.layers]
            for name in ("first_diverging", "worst_step"):
                layer = getattr(self, name)
                document[name] = _finite(dataclasses.asdict(layer)) if layer else None
        return document


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }
