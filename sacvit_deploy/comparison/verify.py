"""What a verification found, and the limits it is held against."""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.comparison.decisions import (
    Agreement,
    AgreementLimits,
    MissedLimit,
    agreement_limits,
    compare_decisions,
)
from sacvit_deploy.comparison.tensors import (
    PROBABILITIES,
    RELATIVE_TOLERANCE,
    TensorParity,
    compare_tensors,
    reference_tensors,
)
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.libraries import require
from sacvit_deploy.runtime.preprocess import Preprocessor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.comparison.layers import LayerError
    from sacvit_deploy.comparison.network import Contestant
    from sacvit_deploy.runtime.pictures import PictureSource
    from sacvit_deploy.spec import Precision


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
        from sacvit_deploy.comparison.layers import worst_step

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


_BATCHES = (1, 2, 7)
_LAYER_BATCH = 4
_COARSENESS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class VerifyRequest:
    """How to compare.

    Attributes:
        pictures: To decide on, at least one.
        eta: Exit threshold in [0, 1] for both; None takes the candidate's.
        limits: By name, in [0, 1], in the place of those of the precision.
        layers: Whether to compare layer by layer too.

    Raises:
        ConfigError: There is no picture, or a limit is out of [0, 1].
    """

    pictures: Sequence[PictureSource]
    eta: float | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    layers: bool = False

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ConfigError("There is no picture to compare decisions on.", "Give at least one.")
        for name, limit in self.limits.items():
            if not 0 <= limit <= 1:  # NaN would hold whatever is found
                raise ConfigError(f"The limit {name} is {limit!r}.", "Make it 0 to 1.")


def verify(reference: Contestant, candidate: Contestant, request: VerifyRequest) -> Verification:
    """Compare every graph tensor by tensor, and then what is decided on pictures.

    The precision whose limits hold is the lower one of the two.

    Args:
        reference: What is trusted.
        candidate: What is in question; it comes from a bundle.
        request: How.

    Raises:
        ImageError: A picture cannot be read.
        EngineError: A session failed.
        ConfigError: Layers were asked for, and one of the two cannot be looked into.
    """
    precision = max(reference.precision, candidate.precision, key=_COARSENESS.index)
    random = reference.random or candidate.random
    limits = VerifyLimits.default(precision, len(request.pictures), random=random)
    limits = limits.with_values(request.limits)
    records = _tensors(reference, candidate, request.pictures)
    layers = _layers(reference, candidate, request.pictures) if request.layers else None
    finite = all(math.isfinite(record.max_abs_error) for record in records)
    agreement = _agreement(reference, candidate, request) if finite else None
    roles = dict.fromkeys(record.role for record in records)
    worst = tuple(max((r for r in records if r.role == role), key=limits.excess) for role in roles)
    return Verification(
        reference=reference.network.name,
        candidate=candidate.network.name,
        graphs=worst,
        agreement=agreement,
        limits=limits,
        missed=limits.missed(worst, agreement),
        layers=layers,
    )


def _tensors(
    reference: Contestant, candidate: Contestant, pictures: Sequence[PictureSource]
) -> list[TensorParity]:
    largest = min(c.network.largest_batch or _BATCHES[-1] for c in (reference, candidate))
    sizes = dict.fromkeys(min(size, largest) for size in _BATCHES)
    batches = (_pixels(candidate, pictures, size) for size in sizes)
    return compare_tensors(reference.network, candidate.network, batches)


def _pixels(
    candidate: Contestant, pictures: Sequence[PictureSource], size: int
) -> NDArray[np.uint8]:
    """The first pictures, and again from the start where there are fewer."""
    read = Preprocessor(candidate.network.preprocess.spec, "uint8")
    known = [read(picture) for picture in pictures[:size]]
    return np.stack(list(itertools.islice(itertools.cycle(known), size))).astype(np.uint8)


def _layers(
    reference: Contestant, candidate: Contestant, pictures: Sequence[PictureSource]
) -> tuple[LayerError, ...]:
    """At every layer of every graph; each graph gets the reference's tensors."""
    require("onnx", "Comparing layer by layer")
    from sacvit_deploy.comparison.layers import bundle_probes, layer_errors

    if candidate.bundle is None:
        raise ConfigError("Layers are named by a bundle.", "Make one of its graphs the candidate.")
    known = reference_tensors(reference.network, _pixels(candidate, pictures, _LAYER_BATCH))
    found: list[LayerError] = []
    with tempfile.TemporaryDirectory(prefix="sacvit-deploy-") as scratch:
        sources = [contestant.layers(Path(scratch)) for contestant in (reference, candidate)]
        networks = (reference.network, candidate.network)
        for role, probes in bundle_probes(candidate.bundle).items():
            wanted, measured = (
                source.values(role, probes, known.feeds(network, role))
                for source, network in zip(sources, networks, strict=True)
            )
            found += layer_errors(role, probes, wanted, measured)
    return tuple(found)


def _agreement(reference: Contestant, candidate: Contestant, request: VerifyRequest) -> Agreement:
    """At the threshold the candidate is deployed with, or the one asked for."""
    eta, temperature = 0.5, 1.0
    if candidate.bundle is not None:
        usual = candidate.bundle.manifest.usual_exit(candidate.precision, candidate.backend)
        eta, temperature = usual
    eta = eta if request.eta is None else request.eta
    wanted, found = (c.network.decisions(request.pictures) for c in (reference, candidate))
    return compare_decisions(wanted, found, candidate.network.config, eta, temperature)
