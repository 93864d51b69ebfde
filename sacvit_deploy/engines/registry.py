"""Does an engine fit this machine? Asked before any of it is given to a library.

A plan file is code that the library runs. Only one whose hash stands in the bundle's description
is read, and every way in which it does not fit is named at once, with the command that mends it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sacvit_deploy.bundle import build_command
from sacvit_deploy.engines.machine import Machine, cache_folder, this_machine
from sacvit_deploy.engines.onnxruntime_session import (
    SUFFIX,
    OnnxRuntimeSession,
    onnxruntime,
    unavailable_providers,
)
from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.engines.tensorrt_engine import CheckedPlan
from sacvit_deploy.engines.tensorrt_library import library_cuda, load_flavour, version_numbers
from sacvit_deploy.engines.tensorrt_session import open_engines
from sacvit_deploy.errors import BundleIntegrityError, EngineError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sacvit_deploy.bundle import Bundle
    from sacvit_deploy.engines.session import Session
    from sacvit_deploy.engines.tensorrt_library import Flavour
    from sacvit_deploy.errors import SacvitDeployError
    from sacvit_deploy.manifest import EngineEntry
    from sacvit_deploy.spec import EngineBackend, Precision, Role


def checked_plan(
    bundle: Bundle, entry: EngineEntry, machine: Machine | None = None
) -> tuple[Flavour, bytes]:
    """The plan of an engine and the library to open it with, once everything fits.

    Args:
        bundle: Where the engine is.
        entry: Which one.
        machine: What to compare with; this machine by default.

    Raises:
        EngineError: The engine was built for another machine, or the library is too old.
        MissingDependencyError: The library is not installed.
        BundleIntegrityError: The file is missing, truncated, or not the one that was built.
    """
    flavour = load_flavour(entry.runtime)
    machine = machine or this_machine()
    found = mismatches(entry, machine, flavour.version, library_cuda(entry.runtime))
    if found:
        raise EngineError(
            f"The engine {entry.file} does not fit this machine:\n"
            + "\n".join(f"  {line}" for line in found),
            f"Build it on this machine: {build_command(bundle, entry)}",
        )
    return flavour, _read(bundle, entry)


def mismatches(
    entry: EngineEntry, machine: Machine, version: str, cuda: str | None = None
) -> list[str]:
    """Every way in which an engine does not fit, one line each; empty if it fits.

    Args:
        entry: The engine.
        machine: Where it is to run.
        version: Of the installed library of its flavour.
        cuda: Major version that library was compiled for; None if its wheel does not tell.
    """
    lines = (
        _version_mismatch(entry, version),
        _gpu_mismatch(entry, machine),
        _cuda_mismatch(entry, machine, cuda),
        _os_mismatch(entry, machine),
    )
    return [line for line in lines if line]


def _version_mismatch(entry: EngineEntry, version: str) -> str | None:
    built, here = version_numbers(entry.runtime_version), version_numbers(version)
    if entry.flags.get("version_compatible"):
        fits = built[:1] == here[:1] and built[:2] <= here[:2]
        rule = "a version compatible engine loads in the same or a later release of its major one"
    else:
        # Some packages of a library name its build number and some do not.
        fits = built[: len(here)] == here[: len(built)]
        rule = "an engine belongs to one release, to the last digit"
    if fits:
        return None
    return f"{entry.runtime}: built with {entry.runtime_version}, here is {version}; {rule}"


def _gpu_mismatch(entry: EngineEntry, machine: Machine) -> str | None:
    built = ", ".join(entry.compute_capabilities)
    gpu = machine.current_gpu
    if gpu is None:
        return f"GPU: built for compute capability {built}, here is no GPU that CUDA can use"
    if gpu.compute_capability in entry.compute_capabilities:
        return None
    ampere_plus = entry.flags.get("hardware_compatibility") == "ampere-plus"
    if ampere_plus and version_numbers(gpu.compute_capability) >= (8, 0):
        return None
    return f"compute capability: built for {built}, here is {gpu.compute_capability} ({gpu.name})"


def _cuda_mismatch(entry: EngineEntry, machine: Machine, cuda: str | None) -> str | None:
    # A wheel names the major version alone. "12.6" is what the driver had where the engine was
    # built, which says nothing about the library, there or here.
    if not entry.cuda_version.isdigit():
        return None
    built = version_numbers(entry.cuda_version)
    if machine.driver_cuda and version_numbers(machine.driver_cuda)[:1] < built:
        return (
            f"CUDA: built with {entry.cuda_version}, the driver here goes up to "
            f"{machine.driver_cuda}"
        )
    if cuda is not None and version_numbers(cuda) != built:
        return f"CUDA: built with {entry.cuda_version}, {entry.runtime} here uses {cuda}"
    return None


def _os_mismatch(entry: EngineEntry, machine: Machine) -> str | None:
    # NVIDIA documents TensorRT-RTX engines as portable between Windows and Linux.
    if entry.runtime == "tensorrt-rtx" or entry.os == machine.os:
        return None
    return f"operating system: built on {entry.os}, here is {machine.os}"


def _read(bundle: Bundle, entry: EngineEntry) -> bytes:
    """The bytes that were hashed are the bytes that are returned."""
    record = bundle.manifest.files.get(entry.file)
    try:
        content = bundle.engine_path(entry).read_bytes()
    except OSError as error:
        raise BundleIntegrityError(
            f"The engine {entry.file} cannot be read: {error}.",
            f"Build it again: {build_command(bundle, entry)}",
        ) from error
    if record is None or hashlib.sha256(content).hexdigest() != record.sha256:
        raise BundleIntegrityError(
            f"The engine {entry.file} is not the file that was built: its SHA-256 is not the one "
            "in the bundle's description. It is code, and was not loaded.",
            f"Build it again: {build_command(bundle, entry)}",
        )
    return content


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

    def close(self) -> None:
        """Close every session; see `Session.close`."""
        for session in self.sessions.values():
            session.close()


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


def _engines_of(runtime: EngineBackend) -> Prepare:
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
    bundle: Bundle, precision: Precision | None, runtime: EngineBackend
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
