"""Atomic writing of files and folders, and locks on folders.

New content is written beside the old and takes its place at the end: a file in one rename, a folder
in two.

Several processes may work on one bundle. The locks are the operating system's, on the folders
themselves: they leave no file behind and end with their process, however it ends.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sacvit_deploy.errors import ConfigError, raised_as

if sys.platform != "win32":
    import fcntl

_NAME = re.compile(r"\.[0-9a-f]{8}\.tmp")
_STREAMS = ("/dev", "/dev/fd", "/proc/self/fd")
_CHUNK_BYTES = 1 << 20


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
def folder_lock(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a folder while the block lasts; one owner at a time.

    It is not reentrant. If the folder is replaced while the lock is waited for, the new one is
    locked.

    Args:
        folder: It exists.
        wait: Wait until the present owner lets go.

    Yields:
        Whether the lock is held. Windows and some network file systems have no such locks: there
        the block runs without one.

    Raises:
        OSError: The folder cannot be opened.
    """
    if sys.platform == "win32":
        yield False
        return
    while True:
        with _opened(folder) as descriptor:
            is_held = _lock(descriptor, wait=wait)
            # The lock is on the folder that was opened; the path may name another by now.
            if not is_held or os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                yield is_held
                return


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another has it, or this file system has no locks
        return False
    return True


@contextlib.contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """Make a hidden folder inside another, and remove it when the block ends.

    Folders of owners that were killed go first. `OSError` if the parent cannot be written to.
    """
    with terminated_like_ctrl_c(), contextlib.ExitStack() as owned:
        with folder_lock(parent):  # a folder without a lock looks abandoned
            _remove_abandoned(parent)
            folder = parent / f".{secrets.token_hex(4)}.tmp"
            folder.mkdir()
            owned.enter_context(folder_lock(folder))
            owned.callback(_remove, folder)
        yield folder


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # it went with the folder it was made in
        shutil.rmtree(folder)


def _remove_abandoned(parent: Path) -> None:
    for entry in parent.iterdir():
        if not _NAME.fullmatch(entry.name) or entry.is_symlink() or not entry.is_dir():
            continue
        # Its owner has just removed it, or it belongs to another user: either way it may stay.
        with contextlib.suppress(OSError), folder_lock(entry, wait=False) as is_held:
            if is_held:
                shutil.rmtree(entry)


@contextlib.contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """Make SIGTERM raise `KeyboardInterrupt` while the block lasts, so that nothing is left behind.

    Other threads receive no signals, and another handler stays in place: there nothing changes.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def swap_in(staging: Path, target: Path) -> None:
    """Replace an old folder by a new one; after `OSError` the old one is back.

    Ctrl-C at any moment leaves one of the two in place, too.
    """
    aside = staging.with_suffix(".old")
    try:
        if target.exists():
            target.rename(aside)
        staging.rename(target)
    finally:
        if aside.exists():
            if not staging.exists():
                shutil.rmtree(aside)
            elif not target.exists():
                aside.rename(target)


def sync(folder: Path) -> None:
    """Flush all files of a folder to disk, so that a power cut after a rename leaves none empty."""
    for file in folder.rglob("*"):
        if file.is_file():
            _sync_file(file)


def _sync_file(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Replace a file in one step when the block ends.

    Until then the old file stays. An error, Ctrl-C or SIGTERM leaves no part of the new one. A link
    is followed. A device or a pipe, such as /dev/stdout, is written to directly.

    Yields:
        The path to write to: a new file beside the old one, or the device itself.

    Raises:
        OSError: It cannot be written.
    """
    if _is_stream(file):
        yield file
        return
    target = file.resolve()
    temporary = _beside(target)
    with terminated_like_ctrl_c():
        try:
            yield temporary
            _sync_file(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def _is_stream(file: Path) -> bool:
    """Whether a path names a device, a pipe, or a stream of this process, which may be a file."""
    return file.exists() and (not file.is_file() or str(file.absolute().parent) in _STREAMS)


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file through `replacing`, text as UTF-8; `OSError` if it cannot be written."""
    with replacing(file) as path:
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
    temporary = _beside(file.resolve())
    temporary.touch(exist_ok=False)
    temporary.unlink()


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
