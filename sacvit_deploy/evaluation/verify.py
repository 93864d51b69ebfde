"""Does a candidate decide as its reference does, and if not, where does it begin to differ?"""

from __future__ import annotations

import itertools
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sacvit_deploy._optional import require
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.evaluation.verification import Verification, VerifyLimits
from sacvit_deploy.exporters.parity import compare_tensors, reference_tensors
from sacvit_deploy.runtime.decisions import compare_decisions
from sacvit_deploy.runtime.preprocess import Preprocessor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.bundle import Precision
    from sacvit_deploy.evaluation.contestants import Contestant
    from sacvit_deploy.exporters.parity import TensorParity
    from sacvit_deploy.exporters.precision.layers import LayerError
    from sacvit_deploy.runtime.decisions import Agreement
    from sacvit_deploy.runtime.pictures import PictureSource

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
    from sacvit_deploy.exporters.precision.bundle_layers import bundle_probes
    from sacvit_deploy.exporters.precision.layers import layer_errors

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
