"""Verification: two networks tensor by tensor and decision by decision, within limits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sacvit_deploy.comparison.decisions import LIMITS, Limits, MissedLimit, compare_decisions
from sacvit_deploy.comparison.polygraphy_case import save_polygraphy
from sacvit_deploy.comparison.tensors import compare_tensors, finite_fields, parity_batches
from sacvit_deploy.decode import OPTIONAL, encode
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.libraries import require
from sacvit_deploy.progress import OnProgress, Steps, silent, within
from sacvit_deploy.records import Agreement, TensorParity
from sacvit_deploy.runtime.pictures import PictureSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sacvit_deploy.comparison.layers import LayerError
    from sacvit_deploy.comparison.network import Network


_LAYER_BATCH = 4


@dataclass(frozen=True)
class VerifyRequest:
    """How to compare two networks.

    Attributes:
        pictures: Compared by their decisions; at least one.
        eta: Exit threshold of both, in [0, 1]; None takes that of the candidate.
        limits: Fields of `Limits` in [0, 1], by name; the others follow from the precision.
        layers: Whether to compare layer by layer too.
        polygraphy: Folder for the comparison in Polygraphy's files; None writes none.

    Raises:
        ConfigError: There is no picture, or a limit is out of [0, 1].
    """

    pictures: Sequence[PictureSource]
    eta: float | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    layers: bool = False
    polygraphy: Path | None = None

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ConfigError("There is no picture to compare decisions on.", "Give at least one.")
        for name, limit in self.limits.items():
            if not 0 <= limit <= 1:  # NaN would hold whatever is found
                raise ConfigError(f"The limit {name} is {limit!r}.", "Make it 0 to 1.")


@dataclass(frozen=True)
class Verification:
    """Result of comparing two networks.

    Attributes:
        reference: Name of the trusted network.
        candidate: Name of the network in question.
        config: Architecture of the candidate.
        graphs: Worst tensor of each graph, by role.
        agreement: Agreement of the decisions; None where a graph gives numbers that are not finite.
        limits: Limits applied.
        missed: Limits that do not hold.
        layers: Error of every layer, in the order of the network; None if not asked for.
        worst_step: The first layer that is not finite, or else where the error grows most.
    """

    reference: str
    candidate: str
    config: ModelConfig
    graphs: tuple[TensorParity, ...]
    agreement: Agreement | None
    limits: Limits
    missed: tuple[MissedLimit, ...] = ()
    layers: tuple[LayerError, ...] | None = None
    worst_step: LayerError | None = None

    @property
    def passed(self) -> bool:
        """Whether every limit holds."""
        return not self.missed

    @property
    def first_diverging(self) -> LayerError | None:
        """The first layer beyond `max_tensor_error`."""
        return next((layer for layer in self.layers or () if self.diverges(layer)), None)

    def diverges(self, layer: LayerError) -> bool:
        """Whether a layer is beyond `max_tensor_error`."""
        return not layer.error <= self.limits.max_tensor_error

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, by the contract of `verify`; a number that is not finite is null."""
        unknown = dict.fromkeys(f.name for f in fields(Agreement) if f.metadata != OPTIONAL)
        document = {
            "reference": self.reference,
            "candidate": self.candidate,
            "graphs": [finite_fields(record) for record in self.graphs],
            **(encode(self.agreement) if self.agreement else unknown),
            "limits": asdict(self.limits),
            "missed": [finite_fields(missed) for missed in self.missed],
            "passed": self.passed,
        }
        if self.layers is not None:
            document["layers"] = [finite_fields(layer) for layer in self.layers]
            for name in ("first_diverging", "worst_step"):
                layer = getattr(self, name)
                document[name] = finite_fields(layer) if layer else None
        return document


def verify(
    reference: Network,
    candidate: Network,
    request: VerifyRequest,
    on_progress: OnProgress = silent,
) -> Verification:
    """Compare every graph tensor by tensor, and then the decisions on pictures.

    The limits are those of the lower precision of the two.

    Args:
        reference: Trusted network.
        candidate: Network in question; it comes from a bundle.
        request: How to compare.
        on_progress: Called with the share of the work done, in [0, 1], and a short text.

    Raises:
        ImageError: A picture cannot be read.
        EngineError: A session failed.
        ConfigError: The candidate is torch, or layers were asked for of an engine.
        MissingDependencyError: Files for Polygraphy were asked for, and it is not installed.
    """
    precision = max(reference.precision, candidate.precision, key=list(LIMITS).index)
    random = reference.random or candidate.random
    limits = Limits.of(precision, len(request.pictures), random=random)
    limits = replace(limits, **request.limits)
    usual = parity_batches(candidate.config.image_size)
    largest = min(network.largest_batch or usual[-1] for network in (reference, candidate))
    sizes = dict.fromkeys(min(size, largest) for size in usual)
    steps = Steps(on_progress, {"tensors": 4, "layers": 4 * request.layers, "decisions": 8})
    of_tensors = steps.part("tensors")

    def batches() -> Iterator[NDArray[Any]]:
        for done, size in enumerate(sizes):
            of_tensors(done / len(sizes), f"comparing tensors at batch {size}")
            yield _pixels(candidate, request.pictures, size)

    records = compare_tensors(reference, candidate, batches())
    if request.polygraphy is not None:
        size = 1 if candidate.takes_one_picture else min(_LAYER_BATCH, largest)
        pixels = _pixels(candidate, request.pictures, size)
        share = limits.max_tensor_error
        save_polygraphy(reference, candidate, pixels, share, request.polygraphy)
    layers, worst_step = None, None
    if request.layers:
        steps.part("layers")(0.0, "comparing layers")
        layers, worst_step = _compare_layers(reference, candidate, request.pictures)
    finite = all(math.isfinite(record.max_abs_error) for record in records)
    agreement = None
    if finite:
        agreement = _compare_decisions(reference, candidate, request, steps.part("decisions"))
    on_progress(1.0, "compared")
    roles = dict.fromkeys(record.role for record in records)
    worst = tuple(max((r for r in records if r.role == role), key=limits.excess) for role in roles)
    return Verification(
        reference=reference.name,
        candidate=candidate.name,
        config=candidate.config,
        graphs=worst,
        agreement=agreement,
        limits=limits,
        missed=limits.missed(agreement, worst),
        layers=layers,
        worst_step=worst_step,
    )


def _pixels(network: Network, pictures: Sequence[PictureSource], size: int) -> NDArray[Any]:
    """Read the first pictures; where there are fewer, repeat them."""
    known = network.pixels(pictures[:size])
    return known.take(range(size), axis=0, mode="wrap")


def _compare_layers(
    reference: Network, candidate: Network, pictures: Sequence[PictureSource]
) -> tuple[tuple[LayerError, ...], LayerError | None]:
    # onnx is optional: verifying engines on a board does without it.
    require("onnx", "Comparing layer by layer")
    from sacvit_deploy.comparison.layers import compare_layers, worst_step

    size = 1 if candidate.takes_one_picture else _LAYER_BATCH
    found = compare_layers(reference, candidate, _pixels(candidate, pictures, size))
    return tuple(found), worst_step(found)


def _compare_decisions(
    reference: Network, candidate: Network, request: VerifyRequest, on_progress: OnProgress
) -> Agreement:
    if candidate.bundle is None:
        raise ConfigError(
            f"{candidate.name} was to be verified.", "Verify a graph or an engine of a bundle."
        )
    manifest = candidate.bundle.manifest
    eta, temperature = manifest.usual_exit(candidate.precision, candidate.backend)
    eta = eta if request.eta is None else request.eta
    first, second = within(on_progress, 0.0, 0.5), within(on_progress, 0.5, 1.0)
    wanted = reference.decisions(request.pictures, first, "reference")
    found = candidate.decisions(request.pictures, second, "candidate")
    return compare_decisions(wanted, found, candidate.config, eta, temperature)
