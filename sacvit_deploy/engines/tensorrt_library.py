"""TensorRT and TensorRT-RTX: two libraries with nearly one API, told apart by a parameter.

Every module that works with them takes a `Library` and uses its `module`. So both work in one
process, in any order of import.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, get_args

from sacvit_deploy.engines.machine import jetson_release
from sacvit_deploy.errors import EngineError, MissingDependencyError
from sacvit_deploy.libraries import require
from sacvit_deploy.spec import EngineBackend

ENGINE_BACKENDS: tuple[EngineBackend, ...] = get_args(EngineBackend)

# Compute capabilities that TensorRT-RTX 1.7 builds these networks for. Orin (8.7), H100 and H200
# (9.0) are missing in it. It knows Turing (7.5), and refuses FP32 matrix products there; the graphs
# of every precision have some.
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
TURING = "7.5"

_MODULES: dict[EngineBackend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# TensorRT 10.3 is JetPack 6.1's; TensorRT-RTX 1.4 has the oldest published wheels.
_OLDEST: dict[EngineBackend, tuple[int, int]] = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 4)}
_MOST_LINES = 10_000

_JETPACK_FIX = (
    "On a Jetson it comes with JetPack: sudo apt install python3-libnvinfer, and make the virtual "
    "environment with: python3 -m venv --system-site-packages"
)


@dataclass(frozen=True)
class Library:
    """One of the two libraries, imported.

    Attributes:
        backend: Which one.
        module: `tensorrt` or `tensorrt_rtx`.
    """

    backend: EngineBackend
    module: ModuleType

    def __str__(self) -> str:
        """Name and version, for example `TensorRT 10.3.0`."""
        return f"{self.label} {self.version}"

    @property
    def version(self) -> str:
        """Its release, for example `10.3.0`."""
        return str(self.module.__version__)

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX, which builds for several kinds of GPU and needs none."""
        return self.backend == "tensorrt-rtx"

    @property
    def label(self) -> str:
        """Its name as NVIDIA writes it."""
        return "TensorRT-RTX" if self.is_rtx else "TensorRT"

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities that this TensorRT-RTX builds for, such as `8.6`."""
        members = self.module.ComputeCapability.__members__
        digits = (name.removeprefix("SM") for name in members if name.startswith("SM"))
        found = (f"{text[:-1]}.{text[-1]}" for text in digits)
        return tuple(target for target in found if target != TURING)

    @property
    def log(self) -> LibraryLog:
        """Messages of the library in this process, whichever of its objects wrote them."""
        return self._logger_and_log[1]

    @property
    def logger(self) -> Any:
        """The `ILogger` of this process; the library ignores a second one."""
        return self._logger_and_log[0]

    @property
    def _logger_and_log(self) -> tuple[Any, LibraryLog]:
        if self.module not in _LOGGERS:
            log = LibraryLog()
            _LOGGERS.setdefault(self.module, (_collecting_logger(self.module, log), log))
        return _LOGGERS[self.module]

    def runtime(self) -> Any:
        """Make an `IRuntime`; `EngineError` if the library does not start."""
        with self.starting():
            return self.module.Runtime(self.logger)

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Raise `EngineError`, with the library's last messages, if a block cannot make an object.

        `Builder(...)` and `Runtime(...)` raise `TypeError` where CUDA does not start.
        """
        try:
            yield
        except TypeError as error:
            if "nullptr" not in str(error):  # a wrong argument: a mistake in this package
                raise
            said = "\n".join(f"  {text}" for text in self.log.last_errors()) or f"  {error}"
            raise EngineError(
                f"{self} does not start on this machine:\n{said}",
                "Compare its CUDA version with the driver's: sacvit-deploy doctor",
            ) from error


def _collecting_logger(trt: ModuleType, log: LibraryLog) -> Any:
    """An `ILogger` that keeps all messages but those for TensorRT's own developers."""

    class CollectingLogger(trt.ILogger):  # type: ignore[misc, name-defined]  # known at run time
        def __init__(self) -> None:
            # super() would leave the C++ half unmade.
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity != trt.ILogger.VERBOSE:
                log.add(severity.name, message)

    return CollectingLogger()


@dataclass
class LibraryLog:
    """The latest messages of a library, in order, as (severity, text).

    A library logs from several threads; appending to a deque is atomic.

    Attributes:
        lines: The messages. There is a limit, since a process may run for months.
        on_line: Called with each message.
    """

    lines: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=_MOST_LINES))
    on_line: Callable[[str, str], None] = lambda _severity, _text: None

    def add(self, severity: str, text: str) -> None:
        """Add one message."""
        self.lines.append((severity, text))
        self.on_line(severity, text)

    @property
    def errors(self) -> list[str]:
        """Messages of severity ERROR or INTERNAL_ERROR."""
        return [text for severity, text in tuple(self.lines) if severity.endswith("ERROR")]

    def last_errors(self, most: int = 5) -> list[str]:
        """The last errors that say anything, each once."""
        return list(dict.fromkeys(text for text in self.errors if text.strip()))[-most:]

    @property
    def text(self) -> str:
        """One line per message."""
        return "".join(f"[{severity}] {text}\n" for severity, text in tuple(self.lines))


# The logger of each library, kept while the process lives: the library holds on to the first one.
_LOGGERS: dict[ModuleType, tuple[Any, LibraryLog]] = {}


def load_library(backend: EngineBackend) -> Library:
    """Import a library and check that it is new enough.

    Raises:
        MissingDependencyError: It is not installed.
        EngineError: It cannot be loaded, or is too old.
    """
    name = _MODULES[backend]
    try:
        module = require(name, f"The backend {backend}")
    except MissingDependencyError as error:
        if backend == "tensorrt" and jetson_release():
            raise MissingDependencyError(error.problem, _JETPACK_FIX) from error
        raise
    except (ImportError, OSError, RuntimeError) as error:  # it lacks a library of its own
        raise EngineError(
            f"The backend {backend} is installed and cannot be loaded: {error}.",
            "See what this machine has with: sacvit-deploy doctor",
        ) from error
    if not hasattr(module, "__version__"):
        raise MissingDependencyError(
            f"There is a folder named {name} among the installed packages, and no library in it; "
            "it may hold type stubs only.",
            f"Install it with: pip install 'sacvit-deploy[{backend}]'",
        )
    library = Library(backend, module)
    _check_age(library)
    return library


def _check_age(library: Library) -> None:
    oldest = _OLDEST[library.backend]
    if version_numbers(library.version)[:2] >= oldest:
        return
    if library.is_rtx:
        fix = "Upgrade with: pip install --upgrade tensorrt-rtx"
    else:
        fix = (
            "On a Jetson install JetPack 6.1 or later; elsewhere: pip install --upgrade tensorrt. "
            "Until then the bundle runs on onnxruntime."
        )
    raise EngineError(
        f"{library} is installed; {'.'.join(map(str, oldest))} or later is needed, because "
        "precision stands in the graph (a strongly typed network) and not in switches of the "
        "builder.",
        fix,
    )


def default_backend() -> EngineBackend:
    """TensorRT if it is installed, else TensorRT-RTX; `MissingDependencyError` without both."""
    for backend, module in _MODULES.items():
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:  # a mere folder of that name has none
            return backend
    raise MissingDependencyError(
        "Neither TensorRT nor TensorRT-RTX is installed.",
        _JETPACK_FIX
        if jetson_release()
        else "Install one: pip install 'sacvit-deploy[tensorrt]' "
        "(data-centre GPUs), or 'sacvit-deploy[tensorrt-rtx]' (RTX cards; builds without a GPU).",
    )


def library_cuda(backend: EngineBackend) -> str | None:
    """The CUDA major version that a library was compiled for, from the name of its wheel.

    None where it did not come as a wheel, as on a Jetson.
    """
    pattern = re.compile(rf"{_MODULES[backend]}_cu(\d+)_libs")
    for distribution in importlib.metadata.distributions():
        found = pattern.fullmatch((distribution.metadata["Name"] or "").replace("-", "_"))
        if found:
            return found[1]
    return None


def version_numbers(version: str) -> tuple[int, ...]:
    """`10.3.0.26` as (10, 3, 0, 26); a part ends where its digits do."""
    return tuple(int(digits) for digits in re.findall(r"(?:^|\.)(\d+)", version))
