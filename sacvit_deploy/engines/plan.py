"""Build one engine in a process of its own, and pass on what that process says."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from sacvit_deploy.engines.plan_inspection import InspectionWarning, PrecisionShare
from sacvit_deploy.engines.plan_worker import (
    Built,
    LogLine,
    Message,
    PlanOrder,
    Progress,
    fix_for,
    timing_cache_error,
)
from sacvit_deploy.engines.tensorrt_library import Library, LibraryLog
from sacvit_deploy.errors import EngineError, MissingDependencyError, warn_caller
from sacvit_deploy.files import check_writable
from sacvit_deploy.progress import OnProgress

# The user's main module is not run again, as `multiprocessing` would; modules come from the same
# folders as in this process.
_START = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from sacvit_deploy.engines.plan_worker import main; main()"
)
# Chooses the library when Polygraphy is imported.
_USE_RTX = "POLYGRAPHY_USE_TENSORRT_RTX"
# What Windows returns for a process that Ctrl-C ended.
_STATUS_CONTROL_C_EXIT = 0xC000013A
_SHOWN_BYTES = 1000


@dataclass(frozen=True)
class Plan:
    """An engine that was just built.

    Attributes:
        library: The library that built it.
        bytes: Size of its file.
        share: Precisions in the network.
        log: The builder's messages.
        build_s: Seconds it took, start of the process and parsing included.
    """

    library: Library
    bytes: int
    share: PrecisionShare
    log: LibraryLog
    build_s: float


def build_plan(library: Library, order: PlanOrder, on_progress: OnProgress) -> Plan:
    """Build one engine and write it to its file.

    If this process ends for any reason, the one that builds ends too.

    Args:
        library: The library that builds.
        order: The graph, the file of the engine, and the options.
        on_progress: Called with the share of the work done; what it raises stops the build.

    Warns:
        InspectionWarning: See `check_plan`.

    Raises:
        EngineError: The graph is not of that precision, the library refuses it, or it crashed.
        OSError: The engine cannot be written.
        KeyboardInterrupt: Ctrl-C; the process that builds has ended.
    """
    start, log = time.perf_counter(), LibraryLog()
    with tempfile.TemporaryFile() as printed, _worker(library, printed) as process:
        for message in _answers(process, order):
            if isinstance(message, Progress):
                on_progress(*message)
            elif isinstance(message, LogLine):
                log.add(*message)
            elif isinstance(message, Built):
                if message.finding is not None and message.finding.severity == "WARNING":
                    warn_caller(f"{order.plan.name}: {message.finding.text}", InspectionWarning)
                build_s = time.perf_counter() - start
                return Plan(library, order.plan.stat().st_size, message.share, log, build_s)
            else:
                raise message
        raise _crashed(library, order.graph, process.wait(), log.last_errors() or _end(printed))


@contextlib.contextmanager
def _worker(library: Library, printed: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process that builds; at the end of the block it is gone, and its memory is free."""
    environment = {**os.environ, _USE_RTX: str(int(library.is_rtx))}
    with subprocess.Popen(
        [sys.executable, "-c", _START, *map(str, sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=printed,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _answers(process: subprocess.Popen[bytes], order: PlanOrder) -> Iterator[Message]:
    """Give the order, and yield messages until the process ends. Its stdin stays open."""
    stdin, stdout = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
    with contextlib.suppress(OSError):  # it has already ended; there is no answer
        os.write(stdin.fileno(), pickle.dumps(order))
    with contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            yield pickle.load(stdout)


def _end(printed: IO[bytes]) -> list[str]:
    """The last lines of what the process printed."""
    size = printed.seek(0, io.SEEK_END)
    printed.seek(max(size - _SHOWN_BYTES, 0))
    lines = printed.read().decode(errors="replace").splitlines()
    return [line for line in lines if line.strip()][-5:] or ["(it gave no reason)"]


def _crashed(library: Library, graph: Path, status: int, said: list[str]) -> BaseException:
    """The error for a process that ended without an answer."""
    if status in (-signal.SIGINT, _STATUS_CONTROL_C_EXIT):
        return KeyboardInterrupt()
    ended = f"ended with exit code {status}"
    if status < 0:
        ended = f"was ended by {signal.Signals(-status).name}"
    words = "\n".join(f"  {line}" for line in said)
    fix = "See what this machine has with: sacvit-deploy doctor"
    # Linux ends the process that takes the most memory with SIGKILL.
    return EngineError(
        f"{library} crashed while it built {graph}; its process {ended}:\n{words}",
        fix_for("memory" if status == -9 else words, fix),
    )


def check_polygraphy() -> None:
    """Raise `MissingDependencyError` without Polygraphy, and do not import it here.

    Its first import chooses the library for a whole process.
    """
    if importlib.util.find_spec("polygraphy") is None:
        raise MissingDependencyError(
            "Building an engine needs polygraphy, which is not installed.",
            "Install it with: pip install polygraphy",
        )


def check_timing_cache(file: Path) -> None:
    """Make the folder of a timing cache; `EngineError` if the cache could not be written."""
    with timing_cache_error(file, "written", "no engine was built"):
        file.parent.mkdir(parents=True, exist_ok=True)
        check_writable(file)
