"""Build one engine in memory: the builder's configuration, its progress, and how it is stopped."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sacvit_deploy.engines.plan_inspection import (
    PrecisionShare,
    check_precision,
    network_layers,
    precision_share,
)
from sacvit_deploy.engines.tensorrt_library import Library, LibraryLog
from sacvit_deploy.errors import EngineError, raised_as
from sacvit_deploy.files import check_writable, interrupt, open_regular, write_whole

if TYPE_CHECKING:
    from sacvit_deploy.engines.build import BatchRange, EngineRequest


# Share of the work that is done, in [0, 1], and the name of the phase.
OnProgress = Callable[[float, str], None]

_HARDWARE = {"same-compute-capability": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}
_SHOWN_ERRORS = 5
_MIB = 1 << 20


@dataclass(frozen=True)
class Plan:
    """A built engine that is not on disk yet.

    Attributes:
        library: The library that built it.
        content: The bytes of the plan file, owned by the library.
        share: Precisions in the network.
        log: The builder's messages.
        build_s: Seconds it took, parsing included.
    """

    library: Library
    content: memoryview
    share: PrecisionShare
    log: LibraryLog
    build_s: float


def build_plan(
    library: Library,
    graph: Path,
    kept_share: float | None,
    request: EngineRequest,
    on_progress: OnProgress,
) -> Plan:
    """Build one engine in memory.

    Args:
        library: The library that builds.
        graph: The `.onnx` file, its external weights beside it.
        kept_share: See `check_precision`, which runs before the build begins.
        request: Its compute capabilities are the ones to build for.
        on_progress: Called with the share of the work done.

    Raises:
        EngineError: The graph is not of that precision, or the library refuses it.
        KeyboardInterrupt: Ctrl-C; the builder has stopped.
    """
    trt, log, start = library.module, library.log, time.perf_counter()
    log.lines.clear()
    with library.starting():
        builder = trt.Builder(library.logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    # The parser owns the weights the network points to, and has to outlive the build.
    parser = trt.OnnxParser(network, builder.logger)
    _parse(parser, graph, library)
    share = precision_share(network_layers(trt, network))
    check_precision(share, graph.name, request.precision, kept_share)
    config = _config(library, builder, request)
    _add_profile(builder, network, config, request.batch)
    with cancelled_by_ctrl_c() as cancelled:
        progress = config.progress_monitor = _progress_monitor(trt, on_progress, cancelled)
        content = builder.build_serialized_network(network, config)
    if progress.failure is not None:
        raise progress.failure
    if content is None:
        raise _refused(library, graph, log)
    if request.timing_cache is not None:
        with _timing_cache_error(request.timing_cache, "written", "the engine has not been kept"):
            write_whole(request.timing_cache, bytes(config.get_timing_cache().serialize()))
    return Plan(library, memoryview(content), share, log, time.perf_counter() - start)


def _parse(parser: Any, graph: Path, library: Library) -> None:
    if parser.parse_from_file(str(graph)):
        return
    reasons = []
    for index in range(min(parser.num_errors, _SHOWN_ERRORS)):
        error = parser.get_error(index)
        node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
        reasons.append(f"  {node}{error.desc()}")
    raise EngineError(
        f"{library} cannot read {graph}:\n" + "\n".join(reasons),
        "Check the bundle with sacvit-deploy inspect; export with a lower --opset if an operator "
        "is not known.",
    )


def _config(library: Library, builder: Any, request: EngineRequest) -> Any:
    trt, config = library.module, builder.create_builder_config()
    if "TF32" in trt.BuilderFlag.__members__:
        # On by default: it rounds the factors of FP32 products to 10 bits, and tokens are ranked by
        # smaller differences. FP16 and INT8 graphs keep the ranking in FP32 on purpose.
        config.clear_flag(trt.BuilderFlag.TF32)
    # Names and types of all layers, for the engine inspector.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mib * _MIB)
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.hardware_compatibility != "none":
        level = _HARDWARE[request.hardware_compatibility]
        kind = trt.HardwareCompatibilityLevel
        config.hardware_compatibility_level = _member(library, kind, level)
    if request.timing_cache is not None:
        _load_timing_cache(config, request.timing_cache)
    if library.is_rtx:
        # It records CUDA graphs only of engines that allocate nothing while they run.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = len(request.compute_capabilities)
        for index, target in enumerate(request.compute_capabilities):
            name = "SM" + target.replace(".", "")
            kind = trt.ComputeCapability
            config.set_compute_capability(_member(library, kind, name), index)
    return config


def _member(library: Library, kind: Any, name: str) -> Any:
    """A member of an enumeration that not every release has."""
    members = kind.__members__
    if name not in members:
        raise EngineError(
            f"{library} has no {kind.__name__}.{name}.",
            f"It has {', '.join(members)}; upgrade it, or leave the option out.",
        )
    return members[name]


def _add_profile(builder: Any, network: Any, config: Any, batch: BatchRange) -> None:
    """Add one profile; the dynamic axis has the range of the batch."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes = [
            tuple(size if side < 0 else side for side in tensor.shape) for size in batch.triple
        ]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)


def _refused(library: Library, graph: Path, log: LibraryLog) -> EngineError:
    said = log.last_errors(_SHOWN_ERRORS)
    fix = "The lines above are the builder's own; try a smaller --batch or another --opset."
    if any("memory" in text.lower() or "alloc" in text.lower() for text in said):
        fix = (
            "Memory ran out: close other programs, or give a smaller --batch maximum, "
            "--workspace-mib 512 or --optimization-level 2."
        )
    return EngineError(
        f"{library} could not build {graph}:\n"
        + "\n".join(f"  {text}" for text in said or ["(it gave no reason)"]),
        fix,
    )


def check_timing_cache(file: Path) -> None:
    """Make the folder of a timing cache; `EngineError` if the cache could not be written."""
    with _timing_cache_error(file, "written", "no engine was built"):
        file.parent.mkdir(parents=True, exist_ok=True)
        check_writable(file)


def _load_timing_cache(config: Any, file: Path) -> None:
    with _timing_cache_error(file, "read", "no engine was built"):
        content = b""
        if file.exists():
            with open_regular(file) as stream:
                content = stream.read()
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(
            f"The timing cache {file} is not one of this library, release and GPU.",
            "Remove the file; the build makes a new one.",
        )


def _timing_cache_error(
    file: Path, done: str, outcome: str
) -> contextlib.AbstractContextManager[None]:
    problem = f"The timing cache {file} cannot be {done}"
    return raised_as(EngineError, problem, f"Give another file, or none; {outcome}.")


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """The methods of an `IProgressMonitor`, which turn nested phases into one share.

    A phase has steps, and a phase inside it counts as one of them. A builder announces a phase when
    it begins and not before, so the share is kept from falling.

    Attributes:
        failure: The exception of `on_progress`; it stops the build, and is raised after it.
    """

    def __init__(self, on_progress: OnProgress, cancelled: threading.Event) -> None:
        self.failure: Exception | None = None
        self._on_progress = on_progress
        self._cancelled = cancelled
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()
        self._share = 0.0

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases[phase_name] = _Phase(parent_phase, max(num_steps, 1))
        self._tell(phase_name)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """A step, counted from 0, is done; False stops the build."""
        with self._lock:
            if phase_name in self._phases:
                self._phases[phase_name].done = step + 1
        self._tell(phase_name)
        return self.failure is None and not self._cancelled.is_set()

    def phase_finish(self, phase_name: str) -> None:
        """A phase ends, perhaps before its last step."""
        with self._lock:
            self._phases.pop(phase_name, None)

    def _tell(self, phase_name: str) -> None:
        with self._lock:
            share = self._share = max(self._share, self._share_of(phase_name))
        try:
            self._on_progress(share, phase_name)
        except Exception as error:  # it must not cross the library's C++ code; see `failure`
            self.failure = error

    def _share_of(self, phase_name: str) -> float:
        """Share of the whole work that is done, seen from a phase upwards."""
        share, phase = 0.0, self._phases.get(phase_name)
        while phase is not None:
            share = min((phase.done + share) / phase.steps, 1.0)
            phase = self._phases.get(phase.parent or "")
        return share


def _progress_monitor(trt: ModuleType, on_progress: OnProgress, cancelled: threading.Event) -> Any:
    class Monitor(BuildProgress, trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # known at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            BuildProgress.__init__(self, on_progress, cancelled)

    return Monitor()


@contextlib.contextmanager
def cancelled_by_ctrl_c() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; `KeyboardInterrupt` is raised when the block ends.

    SIGTERM sets it too, where SIGTERM is handled like Ctrl-C.

    An exception inside a callback would have to cross the library's C++ code, which ends the
    process. So the builder is asked to stop, and the exception is raised after it has.
    """
    cancelled = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield cancelled  # Python handles signals in the main thread alone
        return
    before = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
    if signal.getsignal(signal.SIGTERM) is interrupt:
        before[signal.SIGTERM] = interrupt
    received = []

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        cancelled.set()

    for number in before:
        signal.signal(number, stop)
    try:
        yield cancelled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if cancelled.is_set():
            raise KeyboardInterrupt(*received[:1])
