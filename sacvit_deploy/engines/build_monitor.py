"""What a builder says while it works: log lines, progress, and the way to stop it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

# Share of the work done in [0, 1], and what is being done.
OnProgress = Callable[[float, str], None]


@dataclass
class BuildLog:
    """Lines of one build, in order, as (severity, text).

    The builder calls from threads of its own; appending to a list is atomic.
    """

    lines: list[tuple[str, str]] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """What was said with the severity ERROR or INTERNAL_ERROR."""
        return [text for severity, text in self.lines if severity.endswith("ERROR")]

    @property
    def text(self) -> str:
        """One line per message."""
        return "".join(f"[{severity}] {text}\n" for severity, text in self.lines)


def logger(trt: ModuleType, log: BuildLog) -> Any:
    """An `ILogger` that collects everything but what is only for TensorRT's own developers."""

    class CollectingLogger(trt.ILogger):  # type: ignore[misc, name-defined]  # known at run time
        def __init__(self) -> None:
            # The bindings insist on this form; super() leaves the C++ half unmade.
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity != trt.ILogger.VERBOSE:
                log.lines.append((severity.name, message))

    return CollectingLogger()


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
