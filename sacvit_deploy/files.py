"""Atomic writing of files and folders, and locks on them.

New content is written beside the old and takes its place at the end in one step.

Several processes may work on one bundle. The locks are the operating system's, on the files and
folders themselves: they leave no file behind and end with their process, however it ends. What a
killed process left has no lock, and goes when the same place is written to again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from sacvit_deploy.errors import ConfigError, raised_as

if sys.platform != "win32":
    import fcntl

_TEMPORARY, _ASIDE = ".tmp", ".old"
_STREAMS = ("/dev", "/dev/fd", "/proc/self/fd")
_CHUNK_BYTES = 1 << 20
# Arguments of renameat2 (Linux) and renamex_np (macOS).
_CURRENT_FOLDER, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2


@dataclass(frozen=True)
class FileRecord:
    """Digest and size of a file when it was written.

    Attributes:
        sha256: Hexadecimal digest of its content.
        bytes: Its size.
    """

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Read a file and record it; `OSError` if it cannot be read."""
        digest, size = hashlib.sha256(), 0
        with open_regular(path) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return cls(digest.hexdigest(), size)


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file to read its bytes, and refuse every other kind at once.

    A pipe would be waited for, a device may have no end, and opening it can have effects.

    Raises:
        OSError: The file cannot be read, or is a folder, a pipe, a socket or a device.
    """
    return open(path, "rb", opener=_regular_descriptor)


def _regular_descriptor(path: str, flags: int) -> int:
    _check_regular(path, os.stat(path))
    # Between the two checks the path may come to name a pipe.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        _check_regular(path, os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: str, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", path)


@contextlib.contextmanager
def folder_lock(folder: Path, *, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Hold the lock of a folder, or of a file, while the block lasts.

    It has one owner at a time, or any number of shared ones. It is not reentrant. If the folder is
    replaced while the lock is waited for, the new one is locked.

    Args:
        folder: It exists.
        wait: Wait until the present owner lets go.
        shared: Let others share the lock, as readers do.

    Yields:
        Whether the lock is held. Windows and some network file systems have no such locks: there
        the block runs without one.

    Raises:
        OSError: The folder cannot be opened.
    """
    if sys.platform == "win32":
        yield False
        return
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        with _opened(folder) as descriptor:
            is_held = _lock(descriptor, kind)
            # The lock is on the folder that was opened; the path may name another by now.
            if not is_held or os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                yield is_held
                return


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind)
    except OSError:  # another has it, or this file system has no locks
        return False
    return True


@contextlib.contextmanager
def own_folder(parent: Path, name: str = "") -> Iterator[Path]:
    """Make a hidden folder inside another, and remove it when the block ends.

    Folders of the same name whose owners were killed go first. SIGTERM ends the block as Ctrl-C
    does. `OSError` if the parent cannot be written to.

    Args:
        parent: It exists.
        name: Name of what is made in it, which becomes a part of the folder's name.
    """
    remove_abandoned(parent, name)
    with _owned(parent, name, Path.mkdir) as folder:
        yield folder


@contextlib.contextmanager
def _owned(parent: Path, name: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """Make a temporary file or folder, lock it, and remove it when the block ends."""
    with terminated_like_ctrl_c(), contextlib.ExitStack() as owned:
        while True:
            temporary = _temporary(parent, name)
            make(temporary)
            # Without a lock it looks abandoned: another process may have just removed it.
            with contextlib.suppress(FileNotFoundError):
                owned.enter_context(folder_lock(temporary))
                break
        owned.callback(_remove, temporary)
        yield temporary


def _temporary(parent: Path, name: str) -> Path:
    return parent / f"{_prefix(name)}{secrets.token_hex(4)}{_TEMPORARY}"


def _prefix(name: str) -> str:
    return f".{name}." if name else "."


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # it went with the folder it was made in
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_abandoned(parent: Path, name: str = "", *, folders: bool = True) -> None:
    """Remove what killed processes left when they made a file or folder.

    These are the temporary ones of that name that nobody has locked. Where there are no locks, all
    stay.

    Args:
        parent: Where it was made.
        name: Its name; empty for `own_folder` without one.
        folders: Remove folders, or else files.
    """
    suffixes = (_TEMPORARY, _ASIDE) if name and (parent / name).exists() else (_TEMPORARY,)
    for entry in _left(parent, name, suffixes):
        if entry.is_dir() is not folders:
            continue
        # Its owner has just removed it, or it belongs to another user: either way it may stay.
        with contextlib.suppress(OSError), folder_lock(entry, wait=False) as is_held:
            if is_held:
                _remove(entry)


def _left(parent: Path, name: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Temporary files and folders of a name, in use or not; none if they cannot be listed."""
    ours = re.compile(rf"{re.escape(_prefix(name))}[0-9a-f]{{8}}\.[a-z]+")
    with contextlib.suppress(OSError):
        return [
            entry
            for entry in parent.iterdir()
            if ours.fullmatch(entry.name)
            and entry.suffix in suffixes
            and not entry.is_symlink()
            and (entry.is_dir() or entry.is_file())
        ]
    return []


@contextlib.contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """Make SIGTERM raise `KeyboardInterrupt` while the block lasts, so that nothing is left behind.

    Other threads receive no signals, and another handler stays in place: there nothing changes.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def interrupt(number: int, _frame: object) -> NoReturn:
    """A handler of signals: raise `KeyboardInterrupt` with the number of the signal."""
    raise KeyboardInterrupt(number)


def swap_in(staging: Path, target: Path) -> None:
    """Replace an old folder by a new one; after `OSError` the old one is back.

    Ctrl-C at any moment leaves one of the two in place, too. Linux and macOS exchange them in one
    step. Elsewhere, or on some network file systems, two renames are needed, and after `kill -9`
    between them `put_back` restores the old one.

    Args:
        staging: The new folder.
        target: The old one, if there is one; hold its lock.
    """
    if not target.exists():
        staging.rename(target)
    elif _exchange(staging, target):
        shutil.rmtree(staging)
    else:
        _rename_twice(staging, target)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where this is not possible."""
    paths = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return not library.renamex_np(*paths, _RENAME_SWAP)
        first, second = ((_CURRENT_FOLDER, path) for path in paths)
        return not library.renameat2(*first, *second, _RENAME_EXCHANGE)
    except (AttributeError, OSError, TypeError):  # another system, or an older library
        return False


def _rename_twice(staging: Path, target: Path) -> None:
    aside = _temporary(target.parent, target.name).with_suffix(_ASIDE)
    try:
        target.rename(aside)
        staging.rename(target)
    finally:
        if aside.exists() and not target.exists():
            aside.rename(target)
        elif aside.exists():
            aside.rename(staging)  # `put_back` must not find it half removed
            shutil.rmtree(staging)


def put_back(target: Path) -> bool:
    """Restore a folder that a killed process had moved aside to replace it.

    If a replacement is in progress, wait until it has ended. Nothing happens where the folder
    exists, cannot be restored, or there are no locks to tell the two cases apart.

    Returns:
        Whether one was aside.
    """
    if target.exists():
        return False
    target = target.resolve()
    left = _left(target.parent, target.name, (_ASIDE,))
    for aside in left:
        with contextlib.suppress(OSError), folder_lock(aside) as is_held:
            if is_held and not target.exists():
                aside.rename(target)
    return bool(left)


def sync(folder: Path) -> None:
    """Flush all files of a folder to disk, so that a power cut after a rename leaves none empty."""
    for file in folder.rglob("*"):
        if file.is_file():
            _sync_file(file)


def _sync_file(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


@contextlib.contextmanager
def replacing(file: Path, *, follow_link: bool = True) -> Iterator[Path]:
    """Replace a file in one step when the block ends.

    Until then the old file stays. An error, Ctrl-C or SIGTERM leaves no part of the new one, and
    what a killed process left of it goes first. A device or a pipe, such as /dev/stdout, is written
    to directly.

    Args:
        file: The file.
        follow_link: Where it is a link, replace the file that it names, or else the link.

    Yields:
        The path to write to: a new file beside the old one, or the device itself.

    Raises:
        OSError: It cannot be written.
    """
    if _is_stream(file):
        yield file
        return
    target = file.resolve() if follow_link else file.absolute()
    remove_abandoned(target.parent, target.name, folders=False)
    with _owned(target.parent, target.name, _make_file) as temporary:
        yield temporary
        _sync_file(temporary)
        os.replace(temporary, target)


def _make_file(path: Path) -> None:
    path.touch(exist_ok=False)


def _is_stream(file: Path) -> bool:
    """Whether a path names a device, a pipe, or a stream of this process, which may be a file."""
    return file.exists() and (not file.is_file() or str(file.absolute().parent) in _STREAMS)


def write_whole(file: Path, content: str | bytes, *, follow_link: bool = True) -> None:
    """Write a file through `replacing`, text as UTF-8; `OSError` if it cannot be written."""
    with replacing(file, follow_link=follow_link) as path:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def check_writable(file: Path) -> None:
    """Raise `OSError` if `replacing` could not write a file; leave nothing behind."""
    if file.is_dir():
        raise IsADirectoryError("it is a folder")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {file.parent}")
    if _is_stream(file):
        if not os.access(file, os.W_OK):
            raise PermissionError("it is read-only")
        return
    target = file.resolve()
    with _owned(target.parent, target.name, _make_file):
        pass


def check_output(file: Path) -> None:
    """Raise `ConfigError` if `write_output` could not write a file; leave nothing behind."""
    with _output_error(file):
        check_writable(file)


def write_output(file: Path, content: str | bytes) -> None:
    """Write a result like `write_whole`; `ConfigError` if it cannot be written."""
    with _output_error(file):
        write_whole(file, content)


def _output_error(file: Path) -> contextlib.AbstractContextManager[None]:
    fix = "Choose another file, in a folder that exists and can be written to."
    return raised_as(ConfigError, f"{file} cannot be written", fix)
