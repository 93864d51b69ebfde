"""Hidden folders to fill, each with one owner and gone with it, and locks on folders.

What was filled takes the place of an older folder in two renames, and a file that of an older file
in one.

Several processes may work on one bundle. The locks are the operating system's, on the folders
themselves: no file is left behind by them, and they end with their process, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import sys
import threading
from typing import TYPE_CHECKING

from sacvit_deploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


if sys.platform != "win32":
    import fcntl

_NAME = re.compile(r"\.[0-9a-f]{8}\.tmp")


@contextlib.contextmanager
def folder_lock(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a folder while the block lasts; only one at a time has it.

    It is not to be asked for again by whoever has it. A folder that takes the place of another
    while that one's lock is waited for is the one that gets locked.

    Args:
        folder: It exists.
        wait: Until the present owner lets go.

    Yields:
        Whether it is held. Windows and some network file systems have no such locks: the block
        runs without one there.

    Raises:
        OSError: The folder cannot be opened.
    """
    if sys.platform == "win32":
        yield False
        return
    while True:
        with _opened(folder) as descriptor:
            is_held = _lock(descriptor, wait=wait)
            # The lock is on what was opened, and the block will go by the path.
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
    """A new hidden folder inside another, gone when the block ends.

    First those go whose owner was killed before it could remove them.

    Raises:
        OSError: The folder cannot be written to.
    """
    with terminated_like_ctrl_c(), contextlib.ExitStack() as owned:
        with folder_lock(parent):  # nobody takes a folder for abandoned before it is locked
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
        # Its owner has just removed it, or it is another user's: it is in nobody's way.
        with contextlib.suppress(OSError), folder_lock(entry, wait=False) as is_held:
            if is_held:
                shutil.rmtree(entry)


@contextlib.contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """SIGTERM raises `KeyboardInterrupt` while the block lasts, so that nothing is left behind.

    Only in the main thread, which signals go to, and only where nobody listens to it already.
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
    """Put a new folder in the place of an old one, which is back if that does not succeed.

    An exception that comes from outside, as Ctrl-C does, finds one of the two in place, too.

    Raises:
        OSError: It cannot be renamed.
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
    """Have the content of files on disk before a rename: a power cut leaves no empty files.

    Raises:
        OSError: A file cannot be written.
    """
    for file in folder.rglob("*"):
        if file.is_file():
            sync_file(file)


def sync_file(file: Path) -> None:
    """As `sync`, for one file."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def check_writable(file: Path) -> None:
    """Find out whether `write_whole` could write a file, and leave nothing behind.

    Raises:
        OSError: It could not.
    """
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder")
    temporary = _beside(file)
    temporary.touch(exist_ok=False)
    temporary.unlink()


def write_whole(file: Path, content: bytes) -> None:
    """Write a file in one step: until it is complete and on disk, what was there stays.

    Raises:
        OSError: It cannot be written.
    """
    temporary = _beside(file)
    try:
        temporary.write_bytes(content)
        sync_file(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")


_OTHER_FILE = "Choose another file, in a folder that exists and can be written to."


def check_output(file: Path) -> None:
    """Find out whether a file could be written, and leave nothing behind.

    Raises:
        ConfigError: It could not.
    """
    if file.is_dir():
        raise ConfigError(f"{file} is a folder, not a file to write to.", _OTHER_FILE)
    if not file.parent.is_dir():
        raise ConfigError(
            f"{file} cannot be written: there is no folder {file.parent}.", _OTHER_FILE
        )
    try:
        check_writable(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error}.", _OTHER_FILE) from error


def write_output(file: Path, content: str | bytes) -> None:
    """Write a file in one step: until it is complete, what was there stays.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        write_whole(file, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error}.", _OTHER_FILE) from error
