"""What a builder says while it works: log lines, progress, and the way to stop it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sacvit_deploy.engines.plan_inspection import (
    PrecisionDemand,
    PrecisionShare,
    network_layers,
    precision_share,
)
from sacvit_deploy.engines.tensorrt_library import BuildLog, logger
from sacvit_deploy.errors import EngineError
from sacvit_deploy.files import check_writable, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from sacvit_deploy.engines.build import BatchRange, BuildOptions
    from sacvit_deploy.engines.tensorrt_library import Flavour


# Share of the work done in [0, 1], and what is being done.
OnProgress = Callable[[float, str], None]


class Progress:
    """Turns nested phases into one share of the work done.

    A phase has steps, and a phase inside it takes the place of one step, as `IProgressMonitor`
    describes. The share never falls: phases are announced when they begin and not before.

    Attributes:
        failure: What `on_progress` raised; the build is stopped, and whoever started it raises it.
    """

    def __init__(self, on_progress: OnProgress) -> None:
        self.failure: Exception | None = None
        self._on_progress = on_progress
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()
        self._share = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))
        self._tell(name)

    def step(self, name: str, step: int) -> None:
        """A step, counted from 0, is done."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
        self._tell(name)

    def finish(self, name: str) -> None:
        """A phase ends, perhaps before its last step."""
        with self._lock:
            self._phases.pop(name, None)

    def _tell(self, name: str) -> None:
        with self._lock:
            self._share = max(self._share, self._share_of(name))
            share = self._share
        try:
            self._on_progress(share, name)
        except Exception as error:  # it must not cross the library's C++ code; see `failure`
            self.failure = error

    def _share_of(self, name: str) -> float:
        """Share of the whole work that is done, seen from a phase upwards."""
        share, phase = 0.0, self._phases.get(name)
        while phase is not None:
            share = min((phase.done + share) / phase.steps, 1.0)
            phase = self._phases.get(phase.parent or "")
        return share


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


def progress_monitor(trt: ModuleType, progress: Progress, cancelled: threading.Event) -> Any:
    """An `IProgressMonitor` that reports, and stops the build once `cancelled` is set."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # known at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.step(phase_name, step)
            return progress.failure is None and not cancelled.is_set()

    return Monitor()


@contextlib.contextmanager
def cancelled_by_ctrl_c() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; `KeyboardInterrupt` is raised when the block ends.

    SIGTERM sets it too, where it goes the way of Ctrl-C.

    An exception raised inside a callback would have to cross the library's C++ code, which ends the
    process. So the builder is asked to stop, and the exception comes after it has.
    """
    cancelled = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield cancelled  # signals are the main thread's business
        return
    before = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
    if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:
        before[signal.SIGTERM] = signal.default_int_handler
    for number in before:
        signal.signal(number, lambda *_: cancelled.set())
    try:
        yield cancelled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if cancelled.is_set():
            raise KeyboardInterrupt


_HARDWARE = {
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
    "ampere-plus": "AMPERE_PLUS",
}
_SHOWN_ERRORS = 5
_MIB = 1 << 20


@dataclass(frozen=True)
class Plan:
    """A built engine that is not on disk yet.

    Attributes:
        content: The bytes of the plan file, owned by the library.
        share: What the network consists of.
        log: What the builder said.
        build_s: Seconds it took, parsing included.
    """

    content: memoryview
    share: PrecisionShare
    log: BuildLog
    build_s: float


def build_plan(
    flavour: Flavour,
    graph: Path,
    demand: PrecisionDemand,
    options: BuildOptions,
    on_progress: OnProgress,
) -> Plan:
    """Build one engine in memory.

    Args:
        flavour: Which library builds.
        graph: The `.onnx` file, its external weights beside it.
        demand: What the graph has to be; checked before the build begins.
        options: Compute capabilities are those to build for, none for the GPU of this machine.
        on_progress: Is told the share of the work done, in [0, 1].

    Raises:
        EngineError: The graph is not of that precision, or the library refuses it.
        KeyboardInterrupt: Ctrl-C; the builder was asked to stop, and did.
    """
    trt, log, start = flavour.module, BuildLog(), time.perf_counter()
    builder = trt.Builder(logger(trt, log))
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    # The parser owns the weights the network points to, and has to outlive the build.
    parser = trt.OnnxParser(network, builder.logger)
    _parse(parser, graph, flavour)
    share = precision_share(network_layers(trt, network))
    demand.check(share, graph.name)
    config = _config(flavour, builder, options)
    _add_profile(builder, network, config, options.batch)
    progress = Progress(on_progress)
    with cancelled_by_ctrl_c() as cancelled:
        config.progress_monitor = progress_monitor(trt, progress, cancelled)
        content = builder.build_serialized_network(network, config)
    if progress.failure is not None:
        raise progress.failure
    if content is None:
        raise _refused(flavour, graph, log)
    if options.timing_cache is not None:
        _save_timing_cache(config, options.timing_cache)
    return Plan(memoryview(content), share, log, time.perf_counter() - start)


def _parse(parser: Any, graph: Path, flavour: Flavour) -> None:
    if parser.parse_from_file(str(graph)):
        return
    reasons = []
    for index in range(min(parser.num_errors, _SHOWN_ERRORS)):
        error = parser.get_error(index)
        node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
        reasons.append(f"  {node}{error.desc()}")
    raise EngineError(
        f"{flavour.label} {flavour.version} cannot read {graph}:\n" + "\n".join(reasons),
        "Check the bundle with sacvit-deploy inspect; export with a lower --opset if an operator "
        "is not known.",
    )


def _config(flavour: Flavour, builder: Any, options: BuildOptions) -> Any:
    trt, config = flavour.module, builder.create_builder_config()
    if "TF32" in trt.BuilderFlag.__members__:
        # On by default: it rounds the factors of FP32 products to 10 bits, and tokens are ranked by
        # smaller differences; in FP16 and INT8 graphs what ranks them is FP32 on purpose.
        config.clear_flag(trt.BuilderFlag.TF32)
    # Names and types of all layers, for the engine inspector.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatibility != "none":
        level = _HARDWARE[options.hardware_compatibility]
        config.hardware_compatibility_level = _member(
            flavour, trt.HardwareCompatibilityLevel, level
        )
    if options.timing_cache is not None:
        _load_timing_cache(config, options.timing_cache)
    if flavour.is_rtx:
        _set_targets(flavour, config, options.compute_capabilities)
    return config


def _member(flavour: Flavour, kind: Any, name: str) -> Any:
    """A member of an enumeration that not every release has."""
    members = kind.__members__
    if name not in members:
        raise EngineError(
            f"{flavour.label} {flavour.version} has no {kind.__name__}.{name}.",
            f"It has {', '.join(members)}; upgrade it, or leave the option out.",
        )
    return members[name]


def target_names(flavour: Flavour) -> tuple[str, ...]:
    """The compute capabilities a TensorRT-RTX can build for, such as `8.6`."""
    members = flavour.module.ComputeCapability.__members__
    digits = [name.removeprefix("SM") for name in members if name.startswith("SM")]
    return tuple(f"{text[:-1]}.{text[-1]}" for text in digits)


def _set_targets(flavour: Flavour, config: Any, targets: tuple[str, ...]) -> None:
    kind = flavour.module.ComputeCapability
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        name = "SM" + target.replace(".", "")
        config.set_compute_capability(_member(flavour, kind, name), index)


def _add_profile(builder: Any, network: Any, config: Any, batch: BatchRange) -> None:
    """One profile; every dynamic axis, survivors included, has the range of the batch."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes = [
            tuple(size if side < 0 else side for side in tensor.shape) for size in batch.triple
        ]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)


def _refused(flavour: Flavour, graph: Path, log: BuildLog) -> EngineError:
    said = [text for text in log.errors if text.strip()][-_SHOWN_ERRORS:]
    fix = "The lines above are the builder's own; try a smaller --batch or another --opset."
    if any("memory" in text.lower() or "alloc" in text.lower() for text in said):
        fix = (
            "Memory ran out: close other programs, or give a smaller --batch maximum, "
            "--workspace-mib 512 or --optimization-level 2."
        )
    return EngineError(
        f"{flavour.label} {flavour.version} could not build {graph}:\n"
        + "\n".join(f"  {text}" for text in said or ["(it gave no reason)"]),
        fix,
    )


def check_timing_cache(file: Path) -> None:
    """Find out before the build whether its timings could be kept; makes the folder.

    Raises:
        EngineError: They could not.
    """
    with _told_as_engine_error(file, "no engine was built"):
        file.parent.mkdir(parents=True, exist_ok=True)
        check_writable(file)


def _load_timing_cache(config: Any, file: Path) -> None:
    try:
        content = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise EngineError(
            f"The timing cache {file} cannot be read: {error}.", "Give another file, or none."
        ) from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(
            f"The timing cache {file} is not one of this library, release and GPU.",
            "Remove the file, and it is made anew.",
        )


def _save_timing_cache(config: Any, file: Path) -> None:
    with _told_as_engine_error(file, "the engine has not been kept"):
        write_whole(file, bytes(config.get_timing_cache().serialize()))


@contextlib.contextmanager
def _told_as_engine_error(file: Path, outcome: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineError(
            f"The timing cache {file} cannot be written: {error}.",
            f"Give another file, or none; {outcome}.",
        ) from error
