"""A bar for work that takes minutes."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click
import numpy as np
import onnx

from sacvit_deploy.comparison.decisions import (
    Decisions,
    Limits,
    compare_decisions,
    scheduler_decisions,
)
from sacvit_deploy.comparison.graphs import (
    LiteralSession,
    RecordingSession,
    read_graph,
    resolve_keep,
    rounding_model,
)
from sacvit_deploy.comparison.layers import (
    GraphLayers,
    layer_errors,
    probes,
    worst_step,
)
from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from sacvit_deploy.errors import EngineError, PrecisionError
from sacvit_deploy.exporters.precision.half_precision import half_model
from sacvit_deploy.exporters.precision.int8 import int8_model, rounded_weights
from sacvit_deploy.exporters.precision.ranges import (
    CalibratingSession,
    ChannelSession,
    channels_by_place,
)
from sacvit_deploy.exporters.precision.request import BATCH, chosen_pictures
from sacvit_deploy.exporters.precision.smooth import smooth, with_inserted
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.runtime.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from onnxruntime.quantization import TensorsData

    from sacvit_deploy.bundle import Bundle
    from sacvit_deploy.comparison.layers import LayerError
    from sacvit_deploy.engines.session import Session
    from sacvit_deploy.exporters.precision.int8 import RoundedWeight
    from sacvit_deploy.exporters.precision.request import PictureSet, PrecisionRequest
    from sacvit_deploy.manifest import Agreement
    from sacvit_deploy.spec import Role

    Feeds = Mapping[str, NDArray[Any]]
    Kept = Mapping[Role, frozenset[str]]


_T = TypeVar("_T")


def with_bar(items: Iterable[_T], length: int, label: str) -> Iterator[_T]:
    """The items, with a bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    with click.progressbar(items, length=length, label=label, file=sys.stderr) as shown:
        yield from shown


@dataclass
class Conversion:
    """Everything needed to convert a bundle, and to convert it again with other nodes in FP32.

    Attributes:
        bundle: With its FP32 graphs.
        request: What to make of them.
        models: The FP32 graphs with their weights.
        pictures: Calibration data.
        scratch: A folder for files nobody keeps.
        reference: What the FP32 graphs decide on the pictures; for a network of one stage, its
            logits in both places.
        feeds: A batch of what each FP32 graph was given.
        sources: The same graphs with smoothed channels, which INT8 starts from; empty for FP16.
        weights: Of their linear layers, in INT8, by the name of the node; empty for FP16.
        ranges: Of the inputs of their linear layers; empty for FP16.
        smoothing: Strength for each place that was smoothed; empty for FP16.
    """

    bundle: Bundle
    request: PrecisionRequest
    models: dict[Role, onnx.ModelProto]
    pictures: PictureSet
    scratch: Path
    reference: Decisions = field(init=False)
    feeds: dict[Role, Feeds] = field(default_factory=dict)
    sources: dict[Role, onnx.ModelProto] = field(default_factory=dict)
    weights: dict[Role, dict[str, RoundedWeight]] = field(default_factory=dict)
    ranges: dict[Role, TensorsData] = field(default_factory=dict)
    smoothing: dict[str, float] = field(default_factory=dict)
    _opened: dict[Role, tuple[frozenset[str], Session]] = field(default_factory=dict)

    def graphs(self, role: Role, kept: frozenset[str]) -> tuple[onnx.ModelProto, ...]:
        """One graph with the nodes of `kept` in FP32, last as engines are built from it.

        In INT8 there are two: first with the rest in FP32, then with the rest in half.
        """
        if self.request.precision == "fp16":
            return (half_model(self.models[role], kept),)
        int8 = int8_model(self.sources[role], self.ranges[role], self.weights[role], kept)
        return int8, half_model(int8, with_inserted(kept))

    def literal(self, role: Role, kept: frozenset[str]) -> onnx.ModelProto:
        """One graph as a GPU computes it, in what ONNX Runtime on a CPU can be made to do."""
        return rounding_model(self.graphs(role, kept)[-1])

    def agreement(self, kept: Kept) -> Agreement | None:
        """With FP32, on the pictures; None if a graph gave no finite numbers."""
        sessions = {role: self._session(role, kept[role]) for role in self.models}
        try:
            found = _decide(self.bundle, sessions, self.pictures, "Comparing decisions")
        except EngineError:
            return None
        manifest = self.bundle.manifest
        return compare_decisions(self.reference, found, manifest.config, manifest.eta)

    def _session(self, role: Role, kept: frozenset[str]) -> Session:
        """The last one again if nothing changed for this graph."""
        if role not in self._opened or self._opened[role][0] != kept:
            self._opened.pop(role, None)
            file = self.scratch / f"{role}.candidate.onnx"
            onnx.save(self.literal(role, kept), file)
            # Not as a CPU would run it: without VNNI its INT8 products saturate.
            self._opened[role] = (kept, LiteralSession(file))
        return self._opened[role][1]


def prepare(
    bundle: Bundle, request: PrecisionRequest, scratch: Path, report: Callable[[str], None]
) -> Conversion:
    """Run the FP32 graphs on the calibration data, once.

    Raises:
        ConfigError: `request.keep` names what is not there.
        DataError: The calibration data cannot be read.
        ImageError: A picture cannot be read.
    """
    entries = [graph for graph in bundle.manifest.graphs if graph.precision == "fp32"]
    models = {entry.role: read_graph(bundle.graph_path(entry)) for entry in entries}
    resolve_keep(request.keep, models)
    pictures = chosen_pictures(request)
    report(f"Running FP32 on {len(pictures.sources)} pictures ({pictures.name})")
    sessions = {e.role: RecordingSession(OnnxRuntimeSession(bundle.graph_path(e))) for e in entries}
    made = Conversion(bundle, request, models, pictures, scratch)
    if request.precision == "fp16":
        made.reference = _decide(bundle, sessions, pictures, "Running FP32")
    else:
        _calibrate(made, sessions, report)
    made.feeds = {role: session.first_feeds for role, session in sessions.items()}
    return made


def _calibrate(
    made: Conversion, sessions: dict[Role, RecordingSession], report: Callable[[str], None]
) -> None:
    """Fill in `sources`, `smoothing`, `weights`, `reference` and `ranges`."""
    observing = {
        role: ChannelSession(model, role, made.scratch / f"{role}.channels.onnx")
        for role, model in made.models.items()
    }
    _decide(made.bundle, observing, made.pictures, "Looking at channels")
    taken = channels_by_place(made.models, observing)
    made.sources = {role: _copy(model) for role, model in made.models.items()}
    smoothing = smooth(made.sources, taken)
    made.smoothing = {place: each.strength for place, each in smoothing.items()}
    report("Rounding weights")
    taken |= {p: taken[p].mapped(each.centre, each.factor) for p, each in smoothing.items()}
    made.weights = rounded_weights(made.sources, taken)
    calibrating: dict[Role, CalibratingSession] = {}
    for role, session in sessions.items():
        folder = made.scratch / role
        folder.mkdir()
        source = made.sources[role]
        calibrating[role] = CalibratingSession(session, source, made.request.method, folder)
    made.reference = _decide(made.bundle, calibrating, made.pictures, "Calibrating")
    report(f"Finding ranges ({made.request.method})")
    made.ranges = {role: session.ranges() for role, session in calibrating.items()}


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _decide(
    bundle: Bundle, sessions: Mapping[Role, Session], pictures: PictureSet, label: str
) -> Decisions:
    manifest = bundle.manifest
    preprocessor = Preprocessor(manifest.preprocessing, manifest.input_kind)
    count = math.ceil(len(pictures.sources) / BATCH)
    batches = with_bar(pictures.batches(preprocessor), count, label)
    scheduler = Scheduler(manifest.config, sessions, manifest.selection)
    return scheduler_decisions(scheduler, batches)


def limits_for(conversion: Conversion) -> Limits:
    """The limits of the precision for as many pictures as there are."""
    images = len(conversion.pictures.sources)
    precision = conversion.request.precision
    return Limits.of(precision, images, random=conversion.bundle.is_random)


def holds(conversion: Conversion, agreement: Agreement | None) -> bool:
    """Whether an agreement is within the limits."""
    return agreement is not None and limits_for(conversion).hold(agreement)


def check_decisions(conversion: Conversion, kept: Kept) -> Agreement:
    """How far the converted network agrees, if it does.

    Raises:
        PrecisionError: Beyond the limits; it names the layer where the error appears.
    """
    agreement = conversion.agreement(kept)
    if agreement is not None and holds(conversion, agreement):
        return agreement
    precision = conversion.request.precision
    raise PrecisionError(
        f"In {precision} this network decides otherwise than in fp32. On "
        f"{len(conversion.pictures.sources)} pictures ({conversion.pictures.name}): "
        f"{_found(agreement)}. {_wanted(limits_for(conversion))}. It first goes wrong at "
        f"{first_wrong_place(conversion, kept)}.",
        f"Nothing was written. Find what has to stay in FP32 with sacvit-deploy bisect-precision "
        f"BUNDLE DATA --precision {precision} -o keep.txt, then export with --keep-float keep.txt"
        + ("; or try another --calibration-method." if precision == "int8" else "."),
    )


def first_wrong_place(conversion: Conversion, kept: Kept) -> str:
    """The place with the first value that is not finite, or else the largest jump of the error.

    Each graph gets the FP32 inputs of one batch of pictures, so that an error is its own.

    Returns:
        Such as `blocks.3.mlp.fc2 of the refine graph (the result of node x is 81.2% off)`.
    """
    by_graph = (_errors(conversion, role, kept[role]) for role in conversion.models)
    worst = worst_step(layer for layers in by_graph for layer in layers)
    return _named(worst) if worst else "no layer that could be compared"


def _named(layer: LayerError) -> str:
    size = f"{layer.error:.1%} off" if np.isfinite(layer.error) else "not finite"
    return f"{layer.place} of the {layer.role} graph (the result of node {layer.node} is {size})"


def _errors(conversion: Conversion, role: Role, kept: frozenset[str]) -> list[LayerError]:
    """At the end of every linear layer and half block, in order."""
    found = probes(conversion.models[role], role)
    file = conversion.scratch / f"{role}.probes.onnx"
    graphs = (conversion.models[role], conversion.literal(role, kept))
    values = [
        GraphLayers(graph, found, file).values(found, conversion.feeds[role]) for graph in graphs
    ]
    return layer_errors(role, found, *values)


def _found(agreement: Agreement | None) -> str:
    if agreement is None:
        return "its logits are not finite (NaN or infinite)"
    return (
        f"{agreement.label_agreement:.1%} of labels and {agreement.target_overlap:.1%} of target "
        f"tokens are the same, {agreement.exit_flip_rate:.1%} of exits flip"
    )


def _wanted(limits: Limits) -> str:
    return (
        f"Limits: at least {limits.min_label_agreement:.1%} and {limits.min_target_overlap:.0%}, "
        f"at most {limits.max_exit_flip_rate:.1%}"
    )
