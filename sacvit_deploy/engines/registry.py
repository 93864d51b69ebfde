"""Open every graph of a bundle in one backend, the fastest that works."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import get_args

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.decode import shown
from sacvit_deploy.engines.compatibility import checked_plan
from sacvit_deploy.engines.machine import X86_64, cache_folder
from sacvit_deploy.engines.onnxruntime_providers import (
    CPU,
    PROFILE_BATCHES,
    PROFILED,
    SUFFIX,
    asked_providers,
    onnxruntime,
    unavailable_providers,
)
from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from sacvit_deploy.engines.openvino_session import (
    OpenVinoSession,
    asked_device,
    half_precision,
    openvino,
)
from sacvit_deploy.engines.session import Session, SessionOptions, for_any_batch
from sacvit_deploy.engines.tensorrt_session import open_engines
from sacvit_deploy.engines.timing import picture_ms
from sacvit_deploy.errors import (
    BundleIntegrityError,
    EngineError,
    MissingDependencyError,
    SacvitDeployError,
    warn_caller,
)
from sacvit_deploy.records import EngineEntry, GraphEntry
from sacvit_deploy.spec import EngineBackend, Precision, Role

AUTO = "auto"
FASTEST = "fastest"

# The order where none is asked for: FP16 is fast and decides as FP32 does; INT8 is a choice.
_ENGINE_PRECISIONS: tuple[Precision, ...] = ("fp16", "int8", "fp32")


class EngineWarning(UserWarning):
    """A faster backend fits this machine and was not used, since it could not be started."""


@dataclass(frozen=True)
class OpenedSessions:
    """The graphs of a bundle, ready to run.

    Attributes:
        backend: Name of the library that computes.
        sessions: One per role.
        skipped: Why each faster backend was not used, by name; `onnxruntime CUDA` and the like
            name an execution provider.
        precision: Precision of the graphs.
        largest_batch: Larger batches are refused; None if any batch is accepted.
        workers: Runs that can compute side by side.
    """

    backend: str
    sessions: Mapping[Role, Session]
    skipped: Mapping[str, str] = field(default_factory=dict)
    precision: Precision = "fp32"
    largest_batch: int | None = None
    workers: int = 1

    @property
    def provider(self) -> str:
        """See `Session.provider`."""
        return next(iter(self.sessions.values())).provider

    def close(self) -> None:
        """Close every session; see `Session.close`."""
        for session in self.sessions.values():
            session.close()


# Two steps, since their failures differ: many backends cannot be prepared for a bundle, but a
# prepared backend should start.
Start = Callable[[], OpenedSessions]
Prepare = Callable[["Bundle", "Precision | None", SessionOptions], Start]


def backends() -> dict[str, Prepare]:
    """How each backend prepares a bundle, in the order in which `auto` tries them.

    The fastest backend comes first; `auto` passes over OpenVINO where it is not known to be faster.
    """
    return {
        "tensorrt": partial(_prepare_engines, "tensorrt"),
        "tensorrt-rtx": partial(_prepare_engines, "tensorrt-rtx"),
        "openvino": _prepare_openvino,
        "onnxruntime": _prepare_onnxruntime,
    }


def open_sessions(
    bundle: Bundle,
    *,
    backend: str = AUTO,
    precision: Precision | None = None,
    options: SessionOptions | None = None,
) -> OpenedSessions:
    """Open every graph of a bundle in one backend.

    Args:
        bundle: Where the graphs are.
        backend: A name from `backends()`; `auto` for the first that works, in the order that is
            known to be fast; or `fastest` to open all that work, time them, and keep the fastest.
        precision: Precision of the graphs; by default FP32 in ONNX Runtime and OpenVINO, and the
            first of FP16, INT8 and FP32 that has engines.
        options: Providers or devices, threads, CUDA graphs.

    Raises:
        EngineError: The backend is unknown, or cannot run this bundle.
        BundleError: The bundle has no graphs in that precision.
        BundleIntegrityError: An engine is not the file that was built; `auto` only warns.
        MissingDependencyError: The backend is not installed.
    """
    table = backends()
    options = options or SessionOptions()
    _check_choice("backend", backend, (AUTO, FASTEST, *table))
    if precision is not None:
        _check_choice("precision", precision, get_args(Precision))
    if backend == AUTO:
        return _open_first(bundle, precision, options)
    if backend == FASTEST:
        return _open_fastest(bundle, precision, options)
    return table[backend](bundle, precision, options)()


def open_graph(path: Path, graph: GraphEntry, backend: str, options: SessionOptions) -> Session:
    """Open one ONNX graph that belongs to no bundle.

    Args:
        path: The `.onnx` file.
        graph: Its precision, inputs and outputs.
        backend: A backend that takes ONNX graphs as they are.
        options: Providers and threads.

    Raises:
        EngineError: The backend takes engines only, or cannot run the graph.
        MissingDependencyError: The backend is not installed.
    """
    if backend == "onnxruntime":
        return OnnxRuntimeSession(path, options, graph=graph)
    if backend == "openvino":
        return OpenVinoSession(path, graph, options)
    raise EngineError(
        f"The backend {backend} runs engines and no ONNX graphs.",
        "Use onnxruntime or openvino for that.",
    )


def _check_choice(name: str, asked: object, choices: tuple[str, ...]) -> None:
    if not isinstance(asked, str) or asked not in choices:
        raise EngineError(f"There is no {name} {shown(asked)}.", f"Choose {', '.join(choices)}.")


def _open_first(
    bundle: Bundle, precision: Precision | None, options: SessionOptions
) -> OpenedSessions:
    table = backends()
    reason = _against_openvino(bundle, precision, options)
    if reason:
        table.pop("openvino", None)
    working = _Working(bundle, {"openvino": reason} if reason else {})
    for opened in working.opened(table, precision, options):
        working.warn_of_failures(opened.backend)
        return replace(opened, skipped=working.skipped | dict(opened.skipped))
    raise working.none()


def _open_fastest(
    bundle: Bundle, precision: Precision | None, options: SessionOptions
) -> OpenedSessions:
    working = _Working(bundle, {})
    candidates = list(working.opened(backends(), precision, options))
    if not candidates:
        raise working.none()
    graphs = {graph.role: graph for graph in bundle.manifest.graphs}
    times = picture_ms([opened.sessions for opened in candidates], graphs)
    ms, best = min(zip(times, candidates, strict=True), key=lambda each: each[0])
    for other_ms, other in zip(times, candidates, strict=True):
        if other is not best:
            other.close()
            working.skipped[other.backend] = (
                f"It takes {other_ms:.1f} ms for a picture in all graphs, {best.backend} {ms:.1f}."
            )
    working.warn_of_failures(best.backend)
    return replace(best, skipped=working.skipped | dict(best.skipped))


@dataclass(frozen=True)
class _Working:
    """The backends that can run a bundle, and why the others cannot.

    Attributes:
        bundle: Where the graphs are.
        skipped: Reason against a backend, by its name.
        failed: Errors of backends that fit, but could not be started.
    """

    bundle: Bundle
    skipped: dict[str, str]
    failed: dict[str, SacvitDeployError] = field(default_factory=dict)

    def opened(
        self, table: Mapping[str, Prepare], precision: Precision | None, options: SessionOptions
    ) -> Iterator[OpenedSessions]:
        """Open one backend after another."""
        for name, prepare in table.items():
            fits = False
            try:
                start = prepare(self.bundle, precision, options)
                fits = True
                opened = start()
            except (EngineError, MissingDependencyError, BundleIntegrityError) as error:
                self.skipped[name] = error.problem
                # The hash is checked last: all else about the engine fits.
                if fits or isinstance(error, BundleIntegrityError):
                    self.failed[name] = error
            else:
                yield opened

    def warn_of_failures(self, taken: str) -> None:
        """Warn of backends that should have worked."""
        for unused, cause in self.failed.items():
            warn_caller(
                f"{unused} fits this bundle and machine and could not be started, so {taken} "
                f"computes, which is slower. {cause}",
                EngineWarning,
            )

    def none(self) -> EngineError:
        """The error if no backend works."""
        reasons = "\n".join(f"  {name}: {why}" for name, why in self.skipped.items())
        return EngineError(
            f"No backend can run bundle {self.bundle.path}:\n{reasons}",
            "Install onnxruntime, or build an engine for this machine.",
        )


def _against_openvino(
    bundle: Bundle, precision: Precision | None, options: SessionOptions
) -> str | None:
    """Why ONNX Runtime is taken before OpenVINO where both can run; None if it is not.

    Measured with DeiT-S on x86-64 CPUs: OpenVINO is faster in FP16 and INT8, and the same in FP32.
    In BF16, the demo network changes twice as many labels as the limits of FP16 allow.
    """
    chosen = precision or "fp32"
    if options.providers:
        return "Execution providers of ONNX Runtime were asked for."
    if chosen == "fp32":
        return "ONNX Runtime is as fast in FP32."
    if platform.machine().lower() not in X86_64:
        return f"It is not known to be faster on a {platform.machine()} CPU."
    if chosen == "fp16" and _has_only_bf16():
        return "It has only BF16 here, which is less exact than FP16."
    records = (
        bundle.manifest.exit_calibration(chosen, name) for name in ("onnxruntime", "openvino")
    )
    if [record is None for record in records] == [False, True]:
        return f"The exit is calibrated for onnxruntime in {chosen}, and not for openvino."
    try:
        provider = asked_providers(onnxruntime(), None)[0]
    except MissingDependencyError:
        return None
    return None if provider == CPU else f"ONNX Runtime computes on {provider}."


def _has_only_bf16() -> bool:
    try:
        return half_precision(openvino()) == "bf16"
    except MissingDependencyError:
        return False


def _prepare_openvino(
    bundle: Bundle, precision: Precision | None, options: SessionOptions
) -> Start:
    chosen = precision or "fp32"
    graphs = [bundle.graph(role, chosen) for role in _roles(bundle)]
    asked_device(openvino(), options.providers)

    def start() -> OpenedSessions:
        cache, weights = cache_folder(bundle), bundle.linked_weights()
        sessions = {
            graph.role: for_any_batch(
                OpenVinoSession(
                    bundle.graph_path(graph),
                    graph,
                    options,
                    cache=cache / graph.role / "openvino",
                    weights=weights,
                ),
                graph,
            )
            for graph in graphs
        }
        return OpenedSessions("openvino", sessions, precision=chosen, workers=options.workers)

    return start


def _prepare_onnxruntime(
    bundle: Bundle, precision: Precision | None, options: SessionOptions
) -> Start:
    chosen = precision or "fp32"
    graphs = [bundle.graph(role, chosen) for role in _roles(bundle)]
    ort = onnxruntime()

    def start() -> OpenedSessions:
        cache, weights = cache_folder(bundle), bundle.linked_weights()
        sessions = {
            graph.role: for_any_batch(
                OnnxRuntimeSession(
                    bundle.graph_path(graph),
                    options,
                    graph=graph,
                    cache=cache / graph.role,
                    weights=weights,
                ),
                graph,
            )
            for graph in graphs
        }
        reasons = {} if options.providers else unavailable_providers(ort)
        skipped = {f"onnxruntime {n.removesuffix(SUFFIX)}": why for n, why in reasons.items()}
        opened = OpenedSessions("onnxruntime", sessions, skipped, chosen, workers=options.workers)
        largest = PROFILE_BATCHES[-1] if opened.provider in PROFILED else None
        return replace(opened, largest_batch=largest)

    return start


def _prepare_engines(
    backend: EngineBackend, bundle: Bundle, precision: Precision | None, options: SessionOptions
) -> Start:
    if options.providers:
        asked = ", ".join(options.providers)
        raise EngineError(
            f"Execution providers of ONNX Runtime were asked for: {asked}.",
            f"Leave them out to use {backend} itself.",
        )
    entries = _engine_entries(bundle, precision, backend)
    plans = [checked_plan(bundle, entry) for entry in entries]
    return lambda: OpenedSessions(
        backend,
        open_engines(bundle, plans, options),
        precision=entries[0].precision,
        largest_batch=min(entry.batch[-1] for entry in entries),
    )


def _engine_entries(
    bundle: Bundle, precision: Precision | None, backend: EngineBackend
) -> list[EngineEntry]:
    """One engine for each role, all in one precision."""
    roles = _roles(bundle)
    for candidate in (precision,) if precision else _ENGINE_PRECISIONS:
        found = [entry for role in roles for entry in bundle.engines(role, candidate, backend)]
        if len(found) == len(roles):
            return found
    asked = f" in {precision}" if precision else ""
    built = ", ".join(f"{e.role} in {e.precision}" for e in bundle.engines(runtime=backend))
    raise EngineError(
        f"Bundle {bundle.path} has no {backend} engine{asked} for each of its graphs; it has "
        f"{built or 'none'}.",
        f"Build it on this machine: sacvit-deploy build-engine {bundle.path} "
        f"{f'--{precision} ' if precision else ''}--runtime {backend}",
    )


def _roles(bundle: Bundle) -> list[Role]:
    return list(dict.fromkeys(graph.role for graph in bundle.manifest.graphs))
