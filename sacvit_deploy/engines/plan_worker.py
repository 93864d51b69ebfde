"""The process that builds one engine with Polygraphy's loaders; `plan.py` starts it.

Polygraphy chooses between TensorRT and TensorRT-RTX when it is imported, once for a process. In a
process of its own this choice binds nobody, the memory of the builder goes back to the system, a
crash of the library is an error, and the build can be stopped at any moment.

It reads a pickled `PlanOrder` from stdin, which stays open as long as the parent lives. It writes
pickled messages to stdout: `Progress` and `LogLine`, and at the end `Built` or an exception.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from sacvit_deploy.engines.build_progress import BuildProgress
from sacvit_deploy.engines.engine_request import EngineRequest
from sacvit_deploy.engines.plan_inspection import (
    Finding,
    PrecisionShare,
    check_plan,
    check_precision,
    network_layers,
    precision_share,
)
from sacvit_deploy.engines.tensorrt_library import Library, LibraryLog, load_library
from sacvit_deploy.errors import EngineError, SacvitDeployError, raised_as

_HARDWARE = {"same-compute-capability": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}
_MIB = 1 << 20
_MEMORY_FIX = (
    "Memory ran out: close other programs, or give a smaller --batch maximum, "
    "--workspace-mib 512 or --optimization-level 2."
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class PlanOrder:
    """One engine to build.

    Attributes:
        request: Library, precision and options; its compute capabilities are those to build for.
        graph: The `.onnx` file, its external weights beside it.
        plan: The file to write the engine to.
        shapes: Smallest, best and largest shape of each input, by its name.
        kept_share: See `check_precision`, which runs before the build begins.
        opens_here: This machine has the GPU: open the engine and look at its types.
    """

    request: EngineRequest
    graph: Path
    plan: Path
    shapes: dict[str, tuple[Shape, Shape, Shape]]
    kept_share: float | None
    opens_here: bool


class Progress(NamedTuple):
    """Share of the work that is done, in [0, 1], and the name of the phase."""

    share: float
    phase: str


class LogLine(NamedTuple):
    """One message of the library or of Polygraphy."""

    severity: str
    text: str


@dataclass(frozen=True)
class Built:
    """The engine is in its file.

    Attributes:
        share: Precisions in the network.
        finding: What its inspector shows; None if it was not opened.
    """

    share: PrecisionShare
    finding: Finding | None


Message = Progress | LogLine | Built | SacvitDeployError | OSError
Send = Callable[[Message], None]


def main() -> None:
    """Build the engine that is ordered on stdin, and end when the parent ends."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Python's own handler would wait until the builder returns.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    send = _sender()
    order = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        send(build(order, send))
    except (SacvitDeployError, OSError) as error:
        send(error)


def _sender() -> Send:
    """Take stdout for messages; from now on, prints of the library go to stderr."""
    stream, lock = os.fdopen(os.dup(1), "wb"), threading.Lock()
    os.dup2(2, 1)

    def send(message: Message) -> None:
        content = pickle.dumps(message)
        try:
            with lock:  # the builder calls from several threads
                stream.write(content)
                stream.flush()
        except OSError:  # nobody reads; an exception must not cross the library's C++ code
            os._exit(1)

    return send


def _end_with_parent() -> None:
    os.read(0, 1)  # waits for the end of stdin, which the parent never writes to again
    os._exit(1)


def build(order: PlanOrder, send: Send) -> Built:
    """Build an engine and write it to its file.

    Raises:
        EngineError: The graph is not of that precision, or the library refuses it.
        MissingDependencyError: The library is not installed.
        OSError: The engine cannot be written.
    """
    request, library = order.request, load_library(order.request.backend)
    library.log.on_line = lambda severity, text: send(LogLine(severity, text))
    _share_logger(library)
    loaded = _parsed(library, order.graph)
    share = precision_share(network_layers(library.module, loaded[1]))
    check_precision(share, order.graph.name, request.precision, order.kept_share)
    content = _engine_bytes(library, order, loaded, send)
    del loaded  # the engine may need its memory
    finding = None
    if order.opens_here:
        finding = check_plan(library, memoryview(content), request.precision)
        library.log.add(*finding)
    order.plan.write_bytes(content)
    return Built(share, finding)


def _share_logger(library: Library) -> None:
    """Make Polygraphy log where the library does.

    It would give the library a logger of its own, which knows fewer severities.
    """
    from polygraphy.backend.trt import util
    from polygraphy.logger import G_LOGGER

    util.TRT_LOGGER = library.logger
    G_LOGGER.use_python_logging_system, G_LOGGER.letter, G_LOGGER.colors = True, False, False
    logger = logging.getLogger("Polygraphy")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_Forward(library.log))


class _Forward(logging.Handler):
    """Adds Polygraphy's messages to the log, but for those it raises."""

    def __init__(self, log: LibraryLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Add one message; Polygraphy has levels between those of Python."""
        if record.levelno >= logging.CRITICAL:
            return
        level = record.levelno // 10 * 10
        self._log.add(logging.getLevelName(level), record.getMessage())


def _parsed(library: Library, graph: Path) -> tuple[Any, Any, Any]:
    """Builder, network and parser; the parser owns the weights that the network points to."""
    from polygraphy.backend.trt import network_from_onnx_path
    from polygraphy.exception import PolygraphyException

    try:
        with library.starting():
            found: tuple[Any, Any, Any] = network_from_onnx_path(str(graph), strongly_typed=True)
            return found
    except PolygraphyException as error:
        raise EngineError(
            f"{library} cannot read {graph}:\n{_said(library.log, error)}",
            "Check the bundle with sacvit-deploy inspect; export with a lower --opset if an "
            "operator is not known.",
        ) from error


def _engine_bytes(
    library: Library, order: PlanOrder, loaded: tuple[Any, Any, Any], send: Send
) -> Any:
    """Build an engine; `loaded` is what `_parsed` returns."""
    from polygraphy.backend.trt import engine_bytes_from_network
    from polygraphy.exception import PolygraphyException

    file = order.request.timing_cache
    try:
        with timing_cache_error(file, "read", "no engine was built"):
            config = _config_loader(library, order, send)(*loaded[:2])
        # Polygraphy merges the new timings into the file, under a lock that stays beside it.
        with timing_cache_error(file, "written", "the engine has not been kept"):
            return engine_bytes_from_network(
                loaded, config=config, save_timing_cache=file and str(file)
            )
    except PolygraphyException as error:
        said = _said(library.log, error)
        raise EngineError(
            f"{library} could not build {order.graph}:\n{said}",
            fix_for(
                said,
                "The lines above are the builder's own; try a smaller --batch or another --opset.",
            ),
        ) from error


def _config_loader(library: Library, order: PlanOrder, send: Send) -> Any:
    """The loader of the builder's configuration; TF32 is off in it.

    TF32 rounds the factors of FP32 products to 10 bits, and tokens are ranked by smaller
    differences. FP16 and INT8 graphs keep the ranking in FP32 on purpose.
    """
    from polygraphy.backend.trt import CreateConfig, PostprocessConfig, Profile

    trt, request, profile = library.module, order.request, Profile()
    for name, shapes in order.shapes.items():
        profile.add(name, *shapes)
    options: dict[str, Any] = {
        "profiles": [profile],
        # Names and types of all layers, for the engine inspector.
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "progress_monitor": _progress_monitor(trt, send),
        "builder_optimization_level": request.optimization_level,
    }
    if request.workspace_mib is not None:
        limits = {trt.MemoryPoolType.WORKSPACE: request.workspace_mib * _MIB}
        options["memory_pool_limits"] = limits
    if library.is_rtx:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        targets = [tuple(map(int, target.split("."))) for target in request.compute_capabilities]
        loader = CreateConfigRTX(compute_capabilities=targets, **options)
        return PostprocessConfig(loader, lambda _builder, _network, c: _set_rtx_flags(trt, c))
    level = _HARDWARE.get(request.hardware_compatibility)
    return CreateConfig(
        tf32=False,
        version_compatible=request.version_compatible,
        hardware_compatibility_level=level
        and _member(library, trt.HardwareCompatibilityLevel, level),
        load_timing_cache=request.timing_cache and str(request.timing_cache),
        **options,
    )


def _set_rtx_flags(trt: ModuleType, config: Any) -> None:
    """Set what Polygraphy's loader for TensorRT-RTX has no parameters for."""
    flags = trt.BuilderFlag.__members__
    if "TF32" in flags:  # the library turns it on
        config.clear_flag(trt.BuilderFlag.TF32)
    if "REQUIRE_USER_ALLOCATION" in flags:
        # It records CUDA graphs only of engines that allocate nothing while they run.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def _member(library: Library, kind: Any, name: str) -> Any:
    """A member of an enumeration that not every release has."""
    members = kind.__members__
    if name not in members:
        raise EngineError(
            f"{library} has no {kind.__name__}.{name}.",
            f"It has {', '.join(members)}; upgrade it, or leave the option out.",
        )
    return members[name]


def _progress_monitor(trt: ModuleType, send: Send) -> Any:
    class Monitor(BuildProgress, trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # known at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            BuildProgress.__init__(self, lambda share, phase: send(Progress(share, phase)))

    return Monitor()


def timing_cache_error(file: Path | None, done: str, outcome: str) -> Any:
    """Raise `OSError` of a block, which only a timing cache can cause, as `EngineError`."""
    problem = f"The timing cache {file} cannot be {done}"
    return raised_as(EngineError, problem, f"Give another file, or none; {outcome}.")


def _said(log: LibraryLog, error: Exception) -> str:
    return "\n".join(f"  {text}" for text in log.last_errors() or [str(error)])


def fix_for(said: str, otherwise: str) -> str:
    """What to do after a builder has failed, by its last words."""
    out_of_memory = "memory" in said.lower() or "alloc" in said.lower()
    return _MEMORY_FIX if out_of_memory else otherwise
