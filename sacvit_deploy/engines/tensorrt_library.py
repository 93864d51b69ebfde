"""TensorRT or TensorRT-RTX: two libraries with nearly one API, told apart by a parameter.

Every module that works with them takes a `Flavour` and uses its `module`, so that both can be at
work in one process and nothing depends on which was imported first.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from sacvit_deploy.engines.machine import jetson_release
from sacvit_deploy.errors import EngineError, MissingDependencyError
from sacvit_deploy.libraries import require
from sacvit_deploy.spec import EngineBackend

if TYPE_CHECKING:
    from types import ModuleType


RUNTIMES: tuple[EngineBackend, ...] = get_args(EngineBackend)

_MODULES: dict[EngineBackend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# TensorRT 10.3 is JetPack 6.1's; TensorRT-RTX 1.4 is the oldest whose wheels are published.
_OLDEST: dict[EngineBackend, tuple[int, int]] = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 4)}

_JETPACK_FIX = (
    "On a Jetson it comes with JetPack: sudo apt install python3-libnvinfer, and make the virtual "
    "environment with: python3 -m venv --system-site-packages"
)


@dataclass(frozen=True)
class Flavour:
    """One of the two libraries, imported.

    Attributes:
        name: Which one.
        module: `tensorrt` or `tensorrt_rtx`.
    """

    name: EngineBackend
    module: ModuleType

    @property
    def version(self) -> str:
        """For example `10.3.0`."""
        return str(self.module.__version__)

    @property
    def is_rtx(self) -> bool:
        """Whether it compiles on the user's machine, for several kinds of GPU, without one here."""
        return self.name == "tensorrt-rtx"

    @property
    def label(self) -> str:
        """Its name as NVIDIA writes it."""
        return "TensorRT-RTX" if self.is_rtx else "TensorRT"


def load_flavour(name: EngineBackend) -> Flavour:
    """Import a flavour and check that it is new enough.

    Raises:
        MissingDependencyError: It is not installed.
        EngineError: It cannot be loaded, or is too old.
    """
    try:
        module = require(_MODULES[name], f"The runtime {name}")
    except MissingDependencyError as error:
        if name == "tensorrt" and jetson_release():
            raise MissingDependencyError(error.problem, _JETPACK_FIX) from error
        raise
    except (ImportError, OSError, RuntimeError) as error:  # a library it is linked to is missing
        raise EngineError(
            f"The runtime {name} is installed and cannot be loaded: {error}.",
            "See what this machine has with: sacvit-deploy doctor",
        ) from error
    if not hasattr(module, "__version__"):
        raise MissingDependencyError(
            f"There is a folder named {_MODULES[name]} among the installed packages, and no "
            "library in it; it may hold type stubs only.",
            f"Install it with: pip install 'sacvit-deploy[{name}]'",
        )
    flavour = Flavour(name, module)
    _check_age(flavour)
    return flavour


def default_runtime() -> EngineBackend:
    """The first flavour that is installed: TensorRT, then TensorRT-RTX.

    Raises:
        MissingDependencyError: Neither is.
    """
    for name, module in _MODULES.items():
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:  # a mere folder of that name has none
            return name
    raise MissingDependencyError(
        "Neither TensorRT nor TensorRT-RTX is installed.",
        _JETPACK_FIX
        if jetson_release()
        else "Install one: pip install 'sacvit-deploy[tensorrt]' "
        "(data-centre GPUs), or 'sacvit-deploy[tensorrt-rtx]' (RTX cards; builds without a GPU).",
    )


def version_numbers(version: str) -> tuple[int, ...]:
    """`10.3.0.26` as (10, 3, 0, 26); what follows the digits of a part is left out."""
    return tuple(int(digits) for digits in re.findall(r"(?:^|\.)(\d+)", version))


def library_cuda(name: EngineBackend) -> str | None:
    """The CUDA major version a flavour was compiled for, from the name of its wheel.

    None where it came another way, as on a Jetson.
    """
    pattern = re.compile(rf"{_MODULES[name]}_cu(\d+)_libs")
    for distribution in importlib.metadata.distributions():
        found = pattern.fullmatch((distribution.metadata["Name"] or "").replace("-", "_"))
        if found:
            return found[1]
    return None


def _check_age(flavour: Flavour) -> None:
    oldest = _OLDEST[flavour.name]
    if version_numbers(flavour.version)[:2] >= oldest:
        return
    if flavour.is_rtx:
        fix = "Upgrade with: pip install --upgrade tensorrt-rtx"
    else:
        fix = (
            "On a Jetson install JetPack 6.1 or later; elsewhere: pip install --upgrade tensorrt. "
            "Until then the bundle runs on onnxruntime."
        )
    raise EngineError(
        f"{flavour.label} {flavour.version} is installed; {'.'.join(map(str, oldest))} or later is "
        "needed, because precision stands in the graph (a strongly typed network) and not in "
        "switches of the builder.",
        fix,
    )


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
