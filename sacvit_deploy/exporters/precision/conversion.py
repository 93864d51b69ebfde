"""A bundle in a lower precision, held against its FP32 graphs on pictures."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import onnx

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.comparison.decisions import (
    Decisions,
    Limits,
    agreement_in_words,
    compare_decisions,
)
from sacvit_deploy.comparison.graphs import (
    Graph,
    LiteralSession,
    fp32_graphs,
    resolve_keep,
    rounding_model,
)
from sacvit_deploy.comparison.layers import (
    GraphLayers,
    LayerError,
    layer_errors,
    probes,
    worst_step,
)
from sacvit_deploy.comparison.network import Network
from sacvit_deploy.comparison.tensors import ReferenceTensors
from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from sacvit_deploy.engines.session import Session, SessionOptions, for_any_batch
from sacvit_deploy.errors import EngineError, PrecisionError
from sacvit_deploy.exporters.precision.half_precision import HalfConversion
from sacvit_deploy.exporters.precision.int8 import Int8Conversion
from sacvit_deploy.exporters.precision.request import PictureSet, PrecisionRequest, chosen_pictures
from sacvit_deploy.families.config import number_of_classes
from sacvit_deploy.progress import OnProgress, silent
from sacvit_deploy.records import Agreement
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.spec import Role

Kept = Mapping[Role, frozenset[str]]

_BATCH = 8


@dataclass(frozen=True)
class Original:
    """The FP32 graphs of a bundle, and the pictures to run them on.

    Attributes:
        bundle: Bundle with the graphs.
        graphs: FP32 graphs by role.
        pictures: Calibration data.
        scratch: A folder for temporary files.
        threads: CPU threads of one operator; None leaves it to ONNX Runtime.
    """

    bundle: Bundle
    graphs: Mapping[Role, Graph]
    pictures: PictureSet
    scratch: Path
    threads: int | None = None

    def sessions(self) -> dict[Role, Session]:
        """Open the FP32 graphs."""
        graphs = [graph for graph in self.bundle.manifest.graphs if graph.precision == "fp32"]
        options = SessionOptions(threads=self.threads)
        return {
            g.role: OnnxRuntimeSession(self.bundle.graph_path(g), options, graph=g) for g in graphs
        }

    def network(self, sessions: Mapping[Role, Session]) -> Network:
        """The network with sessions of any precision."""
        manifest = self.bundle.manifest
        entries = {graph.role: graph for graph in manifest.graphs}
        sessions = {role: for_any_batch(s, entries[role]) for role, s in sessions.items()}
        preprocess = Preprocessor(manifest.preprocessing, manifest.input_kind)
        name = str(self.bundle.path)
        return Network(name, manifest.config, preprocess, sessions, manifest.selection, _BATCH)

    def decisions(
        self, sessions: Mapping[Role, Session], on_progress: OnProgress = silent, text: str = ""
    ) -> Decisions:
        """Run both stages on every picture; see `Network.decisions`.

        Raises:
            ImageError: A picture cannot be read.
            EngineError: A session failed, or gave logits that are not finite.
        """
        return self.network(sessions).decisions(self.pictures.sources, on_progress, text)


class Conversion(Protocol):
    """The graphs of a bundle in one lower precision, with any choice of nodes in FP32."""

    @property
    def reference(self) -> Decisions:
        """Decisions of the FP32 graphs on the pictures."""

    @property
    def smoothing(self) -> dict[str, float] | None:
        """Strength for each place that was smoothed; None for half."""

    def graphs(self, role: Role, kept: frozenset[str]) -> tuple[onnx.ModelProto, ...]:
        """Convert one graph.

        Args:
            role: Role of the graph.
            kept: Names of nodes to compute in FP32.

        Returns:
            The graph for ONNX Runtime; and a second graph for engines, if it differs.
        """


@contextlib.contextmanager
def converted(
    bundle: Bundle, request: PrecisionRequest, on_progress: OnProgress
) -> Iterator[Trial]:
    """Run the FP32 graphs of a bundle on pictures, and convert them.

    Raises:
        ConfigError: A name in `request.keep` is in no graph.
        DataError: The calibration data cannot be read.
        ImageError: A picture cannot be read.
        PrecisionError: The FP32 graphs compute values that are not finite.
    """
    if request.precision == "int8" and not number_of_classes(bundle.manifest.config):
        raise PrecisionError(
            "A backbone gives features, and INT8 was asked for. INT8 is held to the same "
            "labels as FP32, and a backbone has none.",
            "Use --precision fp16.",
        )
    with tempfile.TemporaryDirectory(prefix="sacvit-deploy-") as scratch:
        graphs, pictures = fp32_graphs(bundle), chosen_pictures(request)
        resolve_keep(request.keep, graphs)  # refuses an unknown name before the work
        original = Original(bundle, graphs, pictures, Path(scratch), request.threads)
        conversion: Conversion
        if request.precision == "fp16":
            conversion = HalfConversion.of(original, on_progress)
        else:
            conversion = Int8Conversion.of(original, request.method, on_progress)
        yield Trial(original, request, conversion)


@dataclass(frozen=True)
class Trial:
    """A conversion, compared with its original for any choice of nodes in FP32.

    Attributes:
        original: FP32 graphs and pictures.
        request: Requested precision.
        conversion: Conversion of the graphs.
    """

    original: Original
    request: PrecisionRequest
    conversion: Conversion
    _opened: dict[Role, tuple[frozenset[str], Session]] = field(default_factory=dict, init=False)

    def kept(self, names: Sequence[str] = ()) -> Kept:
        """Find the nodes in FP32: those of the request, and those of further names.

        Raises:
            ConfigError: A name is in no graph.
        """
        return resolve_keep([*self.request.keep, *names], self.original.graphs)

    def agreement(
        self, kept: Kept, on_progress: OnProgress = silent, text: str = ""
    ) -> Agreement | None:
        """Compare the decisions; None if a graph gives numbers that are not finite.

        Args:
            kept: Names of the nodes in FP32, by role.
            on_progress: Called after each batch.
            text: What to call this work; the precision by default.
        """
        sessions = {role: self._session(role, kept[role]) for role in self.original.graphs}
        try:
            text = text or f"comparing {self.request.precision}"
            found = self.original.decisions(sessions, on_progress, text)
        except EngineError:
            return None
        manifest = self.original.bundle.manifest
        return compare_decisions(self.conversion.reference, found, manifest.config, manifest.eta)

    def _session(self, role: Role, kept: frozenset[str]) -> Session:
        """Open a graph that computes like a GPU, or reuse the last one for the same nodes.

        A CPU would not do: without VNNI its INT8 products saturate.
        """
        if role not in self._opened or self._opened[role][0] != kept:
            self._opened.pop(role, None)
            file = self.original.scratch / f"{role}.candidate.onnx"
            session = LiteralSession(self._literal(role, kept), file, self.request.threads)
            self._opened[role] = (kept, session)
        return self._opened[role][1]

    def _literal(self, role: Role, kept: frozenset[str]) -> onnx.ModelProto:
        """The graph for engines, changed so that ONNX Runtime on a CPU rounds like a GPU."""
        return rounding_model(self.conversion.graphs(role, kept)[-1])

    @property
    def limits(self) -> Limits:
        """Limits of the precision for as many pictures as there are."""
        images = len(self.original.pictures.sources)
        return Limits.of(self.request.precision, images, random=self.original.bundle.is_random)

    def holds(self, agreement: Agreement | None) -> bool:
        """Whether an agreement is within the limits."""
        return agreement is not None and self.limits.hold(agreement)

    def _found(self, agreement: Agreement | None) -> str:
        if agreement is None:
            return "its logits or features are not finite (NaN or infinite)"
        return agreement_in_words(agreement, self.original.bundle.manifest.config)

    def check(self, kept: Kept, on_progress: OnProgress = silent) -> Agreement:
        """Measure the agreement, and refuse one beyond the limits.

        Raises:
            PrecisionError: It names the layer where the error appears.
        """
        agreement = self.agreement(kept, on_progress)
        if agreement is not None and self.holds(agreement):
            return agreement
        precision, pictures = self.request.precision, self.original.pictures
        raise PrecisionError(
            f"In {precision} this network decides otherwise than in fp32. On "
            f"{len(pictures.sources)} pictures ({pictures.name}): {self._found(agreement)}. "
            f"{_wanted(self.limits, agreement)}. It first goes wrong at "
            f"{self._first_wrong_place(kept)}.",
            f"Nothing was written. Find what has to stay in FP32 with sacvit-deploy "
            f"bisect-precision BUNDLE DATA --precision {precision} -o keep.txt, then export with "
            "--keep-float keep.txt"
            + ("; or try another --calibration-method." if precision == "int8" else "."),
        )

    def _first_wrong_place(self, kept: Kept) -> str:
        """Name the first value that is not finite, or else the largest jump of the error."""
        worst = worst_step(self._layer_errors(kept))
        if worst is None:
            return "no layer that could be compared"
        size = f"{worst.error:.1%} off" if math.isfinite(worst.error) else "not finite"
        return (
            f"{worst.place} of the {worst.role} graph (the result of node {worst.node} is {size})"
        )

    def _layer_errors(self, kept: Kept) -> list[LayerError]:
        """Measure every layer; each graph gets the FP32 tensors of one batch of pictures."""
        network = self.original.network(self.original.sessions())
        size = 1 if network.takes_one_picture else _BATCH
        pixels = network.pixels(self.original.pictures.sources[:size])
        known = ReferenceTensors(network, pixels)
        errors: list[LayerError] = []
        for role, graph in self.original.graphs.items():
            found, feeds = probes(graph), known.feeds(network, role)
            file = self.original.scratch / f"{role}.probes.onnx"
            wanted, measured = (
                GraphLayers(model, found, file).values(found, feeds)
                for model in (graph.model, self._literal(role, kept[role]))
            )
            errors += layer_errors(role, found, wanted, measured)
        return errors


def _wanted(limits: Limits, found: Agreement | None) -> str:
    if found is not None and found.max_tensor_error is not None:
        return f"Limit: at most {limits.max_tensor_error:g}"
    return (
        f"Limits: at least {limits.min_label_agreement:.1%} of labels and "
        f"{limits.min_target_overlap:.0%} of tokens, at most {limits.max_exit_flip_rate:.1%} of "
        "exits"
    )
