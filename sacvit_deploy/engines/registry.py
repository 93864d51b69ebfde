"""Which runtimes there are, and the choice among them for one bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sacvit_deploy.bundle import Bundle, Precision
    from sacvit_deploy.engines.session import Session
    from sacvit_deploy.spec import Role

AUTO = "auto"

Opener = Callable[["Bundle", "Role", "Precision", SessionOptions], "Session"]


@dataclass(frozen=True)
class OpenedSessions:
    """The graphs of a bundle, ready to run.

    Attributes:
        backend: Name of the runtime.
        sessions: One per role.
        skipped: Why each better runtime was not taken, by name.
    """

    backend: str
    sessions: Mapping[Role, Session]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def provider(self) -> str:
        """What computes, as the runtime names it."""
        return next(iter(self.sessions.values())).provider


def backends() -> dict[str, Opener]:
    """How each runtime opens one graph, the fastest runtime first."""
    return {
        "tensorrt": _engine_opener("tensorrt"),
        "tensorrt-rtx": _engine_opener("tensorrt-rtx"),
        "onnxruntime": _open_onnxruntime,
    }


def open_sessions(
    bundle: Bundle,
    *,
    backend: str = AUTO,
    precision: Precision = "fp32",
    options: SessionOptions | None = None,
) -> OpenedSessions:
    """Open every graph of a bundle in one runtime.

    Args:
        bundle: Where the graphs are.
        backend: A name from `backends()`, or `auto` for the first that works.
        precision: Which graphs of the bundle.
        options: Providers and threads.

    Raises:
        EngineError: The runtime is unknown, or cannot run this bundle.
        BundleError: The bundle has no graphs in that precision.
        MissingDependencyError: The runtime is not installed.
    """
    table = backends()
    options = options or SessionOptions()
    if backend != AUTO:
        if backend not in table:
            raise EngineError(
                f"There is no backend {backend!r}.", f"Choose {AUTO}, {', '.join(table)}."
            )
        return _open_all(bundle, precision, backend, options)
    skipped: dict[str, str] = {}
    for name in table:
        try:
            opened = _open_all(bundle, precision, name, options)
        except (EngineError, MissingDependencyError) as error:  # noqa: PERF203  once per start
            skipped[name] = error.problem
        else:
            return OpenedSessions(name, opened.sessions, skipped)
    reasons = "\n".join(f"  {name}: {why}" for name, why in skipped.items())
    raise EngineError(
        f"No runtime can run bundle {bundle.path}:\n{reasons}",
        "Install onnxruntime, or build an engine for this machine.",
    )


def _open_all(
    bundle: Bundle, precision: Precision, backend: str, options: SessionOptions
) -> OpenedSessions:
    roles = dict.fromkeys(graph.role for graph in bundle.manifest.graphs)
    opener = backends()[backend]
    return OpenedSessions(
        backend, {role: opener(bundle, role, precision, options) for role in roles}
    )


def _open_onnxruntime(
    bundle: Bundle, role: Role, precision: Precision, options: SessionOptions
) -> Session:
    return OnnxRuntimeSession(bundle.graph_path(bundle.graph(role, precision)), options)


def _engine_opener(runtime: str) -> Opener:
    def refuse(
        bundle: Bundle, role: Role, precision: Precision, options: SessionOptions
    ) -> Session:
        raise EngineError(
            f"Bundle {bundle.path} has no {runtime} engine for the {role} graph.",
            f"Build it on this machine: sacvit-deploy build-engine {bundle.path} "
            f"--runtime {runtime}",
        )

    return refuse
