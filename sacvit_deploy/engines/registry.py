"""Which runtimes there are, and the choice among them for one bundle."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sacvit_deploy.engines.cache_folder import cache_folder
from sacvit_deploy.engines.compatibility import checked_plan
from sacvit_deploy.engines.onnxruntime_providers import SUFFIX, onnxruntime, unavailable_providers
from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.engines.tensorrt_engine import CheckedPlan
from sacvit_deploy.engines.tensorrt_session import open_engines
from sacvit_deploy.errors import BundleIntegrityError, EngineError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sacvit_deploy.bundle import Bundle, Precision
    from sacvit_deploy.engines.session import Session
    from sacvit_deploy.errors import SacvitDeployError
    from sacvit_deploy.manifest import EngineEntry, EngineRuntime
    from sacvit_deploy.spec import Role

AUTO = "auto"

# Where nobody says which: FP16 is fast and decides as FP32 does; INT8 is a choice to be made.
_ENGINE_PRECISIONS: tuple[Precision, ...] = ("fp16", "int8", "fp32")


class EngineWarning(UserWarning):
    """An engine fits this machine and was not used, since it could not be started."""


@dataclass(frozen=True)
class OpenedSessions:
    """The graphs of a bundle, ready to run.

    Attributes:
        backend: Name of the runtime.
        sessions: One per role.
        skipped: Why each better runtime was not taken, by name; `onnxruntime CUDA` and the like
            name an execution provider.
        precision: Which graphs of the bundle.
        largest_batch: More than this is refused; None if any batch is taken.
    """

    backend: str
    sessions: Mapping[Role, Session]
    skipped: Mapping[str, str] = field(default_factory=dict)
    precision: Precision = "fp32"
    largest_batch: int | None = None

    @property
    def provider(self) -> str:
        """What computes, as the runtime names it."""
        return next(iter(self.sessions.values())).provider


# Two steps, since they mean different things when they fail: what a backend cannot be used for is
# no surprise, but once everything fits, starting it should work.
Start = Callable[[], OpenedSessions]
Prepare = Callable[["Bundle", "Precision | None", SessionOptions], Start]


def backends() -> dict[str, Prepare]:
    """How each runtime gets ready for a bundle, the fastest runtime first."""
    return {
        "tensorrt": _engines_of("tensorrt"),
        "tensorrt-rtx": _engines_of("tensorrt-rtx"),
        "onnxruntime": _prepare_onnxruntime,
    }


def open_sessions(
    bundle: Bundle,
    *,
    backend: str = AUTO,
    precision: Precision | None = None,
    options: SessionOptions | None = None,
) -> OpenedSessions:
    """Open every graph of a bundle in one runtime.

    Args:
        bundle: Where the graphs are.
        backend: A name from `backends()`, or `auto` for the first that works.
        precision: Which graphs of the bundle; None takes FP32 in ONNX Runtime, and of the engines
            that were built FP16 before INT8 before FP32.
        options: Providers, threads, CUDA graphs.

    Raises:
        EngineError: The runtime is unknown, or cannot run this bundle.
        BundleError: The bundle has no graphs in that precision.
        BundleIntegrityError: An engine is not the file that was built; not for `auto`.
        MissingDependencyError: The runtime is not installed.
    """
    table = backends()
    options = options or SessionOptions()
    if backend == AUTO:
        return _open_first(bundle, precision, options, table)
    if backend not in table:
        raise EngineError(
            f"There is no backend {backend!r}.", f"Choose {AUTO}, {', '.join(table)}."
        )
    return table[backend](bundle, precision, options)()


def _open_first(
    bundle: Bundle,
    precision: Precision | None,
    options: SessionOptions,
    table: Mapping[str, Prepare],
) -> OpenedSessions:
    skipped: dict[str, str] = {}
    failed: dict[str, SacvitDeployError] = {}
    for name, prepare in table.items():
        try:
            start = prepare(bundle, precision, options)
        except (EngineError, MissingDependencyError) as error:
            skipped[name] = error.problem
            continue
        except BundleIntegrityError as error:  # found last: all else about the engine fits
            failed[name] = error
            skipped[name] = error.problem
            continue
        try:
            opened = start()
        except (EngineError, MissingDependencyError) as error:
            failed[name] = error
            skipped[name] = error.problem
        else:
            _warn_of_failures(failed, name)
            return replace(opened, skipped=skipped | dict(opened.skipped))
    reasons = "\n".join(f"  {name}: {why}" for name, why in skipped.items())
    raise EngineError(
        f"No runtime can run bundle {bundle.path}:\n{reasons}",
        "Install onnxruntime, or build an engine for this machine.",
    )


def _warn_of_failures(failed: Mapping[str, SacvitDeployError], taken: str) -> None:
    for name, error in failed.items():
        warnings.warn(
            f"The bundle's {name} engines fit this machine and could not be started, so {taken} "
            f"computes, which is slower. {error}",
            EngineWarning,
            stacklevel=4,
        )


def _prepare_onnxruntime(
    bundle: Bundle, precision: Precision | None, options: SessionOptions
) -> Start:
    chosen = precision or "fp32"
    graphs = [bundle.graph(role, chosen) for role in _roles(bundle)]
    ort = onnxruntime()

    def start() -> OpenedSessions:
        cache = cache_folder(bundle)
        sessions = {
            graph.role: OnnxRuntimeSession(
                bundle.graph_path(graph), options, cache=cache / graph.role
            )
            for graph in graphs
        }
        reasons = {} if options.providers else unavailable_providers(ort)
        skipped = {f"onnxruntime {n.removesuffix(SUFFIX)}": why for n, why in reasons.items()}
        return OpenedSessions("onnxruntime", sessions, skipped, chosen)

    return start


def _engines_of(runtime: EngineRuntime) -> Prepare:
    def prepare(bundle: Bundle, precision: Precision | None, options: SessionOptions) -> Start:
        if options.providers:
            asked = ", ".join(options.providers)
            raise EngineError(
                f"Execution providers of ONNX Runtime were asked for: {asked}.",
                f"Leave them out to use {runtime} itself.",
            )
        entries = _engine_entries(bundle, precision, runtime)
        plans = [CheckedPlan(entry, *checked_plan(bundle, entry)) for entry in entries]

        def start() -> OpenedSessions:
            return OpenedSessions(
                runtime,
                open_engines(bundle, plans, options),
                precision=entries[0].precision,
                largest_batch=min(entry.batch[-1] for entry in entries),
            )

        return start

    return prepare


def _engine_entries(
    bundle: Bundle, precision: Precision | None, runtime: EngineRuntime
) -> list[EngineEntry]:
    """One engine for each role, all in one precision."""
    roles = _roles(bundle)
    for candidate in (precision,) if precision else _ENGINE_PRECISIONS:
        found = [entry for role in roles for entry in bundle.engines(role, candidate, runtime)]
        if len(found) == len(roles):
            return found
    asked = f" in {precision}" if precision else ""
    built = ", ".join(f"{e.role} in {e.precision}" for e in bundle.engines(runtime=runtime))
    raise EngineError(
        f"Bundle {bundle.path} has no {runtime} engine{asked} for each of its graphs; it has "
        f"{built or 'none'}.",
        f"Build it on this machine: sacvit-deploy build-engine {bundle.path} "
        f"{f'--{precision} ' if precision else ''}--runtime {runtime}",
    )


def _roles(bundle: Bundle) -> list[Role]:
    return list(dict.fromkeys(graph.role for graph in bundle.manifest.graphs))
