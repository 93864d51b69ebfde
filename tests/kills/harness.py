"""Kill a command at each of its file operations in turn.

A fresh process imports everything, runs the command once, and then forks a child for each kill. The
child counts the operations that change files, and ends itself with SIGKILL before number k; a write
is cut in the middle. Counted are those that Python announces (opening for writing, renaming,
removing, folders, links), each write and fsync, and the two that happen in libraries: safetensors'
`save_file`, and `renameat2`, which exchanges two paths.
"""

from __future__ import annotations

import builtins
import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

_CHANGES = (
    *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate"),
    *("os.chmod", "os.utime"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_EXCHANGES = ("renameat2", "renamex_np")


class Case(Protocol):
    """A command that writes, and how to look at what it wrote."""

    def start(self, folder: Path) -> None:
        """Make what is there before the command, in an empty folder."""

    def run(self, folder: Path) -> None:
        """Run the command. It must work whatever a kill left."""

    def seen(self, folder: Path) -> object:
        """What a reader finds; an exception if something is not whole."""


class _Killer:
    """Ends this process at operation number `at`; never if it is None."""

    def __init__(self, at: int | None) -> None:
        self.at, self.done = at, 0

    def is_due(self) -> bool:
        self.done += 1
        return self.done == self.at

    def step(self) -> None:
        if self.is_due():
            end()


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def install(killer: _Killer, folder: Path) -> None:
    """Count every change of a file below a folder, for as long as this process lives."""
    inside = str(folder.resolve())

    def is_watched(path: Any, descriptor: Any = -1) -> bool:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        elif isinstance(descriptor, int) and descriptor >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), os.fsdecode(path))
        return os.path.abspath(os.fsdecode(path)).startswith(inside)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if path is not None and flags & _WRITING and is_watched(path):
                killer.step()
        elif event == "ctypes.dlsym":
            if arguments[1] in _EXCHANGES:
                killer.step()
        elif event in _CHANGES and is_watched(arguments[0], _descriptor(event, arguments)):
            killer.step()

    sys.addaudithook(hook)
    _wrap_descriptors(killer, is_watched)
    _wrap_files(killer, is_watched)
    _wrap_safetensors(killer)


def _descriptor(event: str, arguments: tuple[Any, ...]) -> Any:
    """The folder that a relative path is in; it stands at another place for each event."""
    place = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.rename": 2, "os.symlink": 2}
    return arguments[place[event]] if event in place else -1


def _wrap_descriptors(killer: _Killer, is_watched: Callable[[Any], bool]) -> None:
    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *rest: Any) -> Any:
            if is_watched(descriptor):
                killer.step()
            return function(descriptor, *rest)

        return call

    for name in ("write", "pwrite", "fsync", "fdatasync", "ftruncate", "posix_fallocate"):
        setattr(os, name, counted(getattr(os, name)))


def _wrap_files(killer: _Killer, is_watched: Callable[[Any], bool]) -> None:
    """Give `open` for writing a file that counts what it hands to the system."""
    true_open = io.open

    class Counted(io.FileIO):
        def write(self, content: Any) -> int:
            if is_watched(self.fileno()) and killer.is_due():
                content = memoryview(content).cast("B")
                super().write(content[: len(content) // 2])
                end()
            return super().write(content)

        def truncate(self, size: int | None = None) -> int:
            killer.step()
            return super().truncate(size)

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        if not set(mode) & set("wax+"):
            return true_open(file, mode, buffering, *rest, **named)
        kept = {key: named.pop(key) for key in ("closefd", "opener") if key in named}
        raw = Counted(file, mode.replace("b", "").replace("t", ""), **kept)
        if buffering == 0:
            return raw
        made = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return made if "b" in mode else io.TextIOWrapper(made, *rest, **named)

    builtins.open = io.open = opened


def _wrap_safetensors(killer: _Killer) -> None:
    """It writes in Rust: half the file is there when it is killed."""
    for module in list(sys.modules.values()):
        if not getattr(module, "__name__", "").startswith("sacvit_deploy."):
            continue
        save_file = vars(module).get("save_file")
        if save_file is not None:
            vars(module)["save_file"] = _cut(save_file, killer)


def _cut(save_file: Callable[..., None], killer: _Killer) -> Callable[..., None]:
    def save(tensors: Any, path: Any, *rest: Any, **named: Any) -> None:
        is_due = killer.is_due()
        save_file(tensors, path, *rest, **named)
        if is_due:
            os.truncate(path, os.path.getsize(path) // 2)
            end()

    return save


def in_child(action: Callable[[], None]) -> int:
    """Run an action in a fork; return its exit status, negative for a signal."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def listing(folder: Path) -> list[str]:
    """Every file and folder below, hidden ones too.

    An engine has one of two names in turn; here they count as one, and both together as two.
    """
    names = (entry.relative_to(folder).as_posix() for entry in folder.rglob("*"))
    return sorted(name.replace("-2.", ".") for name in names)


def sweep(case: Case, folder: Path) -> int:
    """Kill a command at each operation in turn, and look at what is left each time.

    Returns:
        How many kills there were.

    Raises:
        AssertionError: What is left is neither old nor new, the next run fails, or something is
            left behind after it. The reason is on stderr.
    """
    template, reference, work = folder / "template", folder / "reference", folder / "work"
    template.mkdir()
    case.start(template)
    before = case.seen(template)
    shutil.copytree(template, reference, symlinks=True)
    assert in_child(lambda: case.run(reference)) == 0, "it fails without a kill, too"
    after, names = case.seen(reference), listing(reference)
    assert before != after, "the test cannot tell the old from the new"
    problems: list[str] = []
    number, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        number += 1
        shutil.copytree(template, work, symlinks=True)
        status = in_child(partial(_killed, case, work, number))
        left = sorted({*listing(work)} - {*listing(template)})
        if in_child(partial(_check, case, work, (before, after), names)) != 0:
            problems.append(f"operation {number}, beside the old: {left}")
        shutil.rmtree(work)
    assert status == 0, f"it failed and was not killed: {status}"
    assert not problems, f"{len(problems)} kills failed:\n" + "\n".join(problems)
    return number - 1


def _killed(case: Case, work: Path, number: int) -> None:
    install(_Killer(number), work)
    case.run(work)


def _check(case: Case, work: Path, expected: tuple[object, object], names: list[str]) -> None:
    found = case.seen(work)
    assert found in expected, f"it is neither old nor new: {found}"
    case.run(work)
    found = case.seen(work)
    assert found == expected[1], f"the next run made {found} of it, not {expected[1]}"
    assert listing(work) == names, f"something is left: {listing(work)}"
