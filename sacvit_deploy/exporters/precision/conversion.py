"""The graphs of a bundle in a lower precision, and how far they decide as the FP32 ones do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx

from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from sacvit_deploy.errors import EngineError
from sacvit_deploy.exporters.precision.calibrate import CalibratingSession
from sacvit_deploy.exporters.precision.channels import ChannelSession, channels_by_place
from sacvit_deploy.exporters.precision.half_precision import half_model, rounding_model
from sacvit_deploy.exporters.precision.layers import read_graph
from sacvit_deploy.exporters.precision.pictures import BATCH, chosen_pictures
from sacvit_deploy.exporters.precision.places import resolve_keep
from sacvit_deploy.exporters.precision.progress import with_bar
from sacvit_deploy.exporters.precision.quantize import int8_model, rounded_weights
from sacvit_deploy.exporters.precision.sessions import (
    LiteralSession,
    RecordingSession,
)
from sacvit_deploy.exporters.precision.smooth import smooth, with_inserted
from sacvit_deploy.runtime.decisions import (
    Agreement,
    Decisions,
    compare_decisions,
    scheduler_decisions,
)
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.runtime.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from onnxruntime.quantization import TensorsData

    from sacvit_deploy.bundle import Bundle
    from sacvit_deploy.engines.session import Session
    from sacvit_deploy.exporters.precision.pictures import PictureSet
    from sacvit_deploy.exporters.precision.request import PrecisionRequest
    from sacvit_deploy.exporters.precision.rounding import RoundedWeight
    from sacvit_deploy.spec import Role

    Feeds = Mapping[str, NDArray[Any]]
    Kept = Mapping[Role, frozenset[str]]


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
