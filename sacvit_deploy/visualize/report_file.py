"""A file that appears whole or not at all, and whose place is tried before the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sacvit_deploy import staging
from sacvit_deploy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_FIX = "Choose another file, in a folder that exists and can be written to."


def check_writable(file: Path) -> None:
    """Find out whether a file could be written, and leave nothing behind.

    Raises:
        ConfigError: It could not.
    """
    if file.is_dir():
        raise ConfigError(f"{file} is a folder, not a file to write to.", _FIX)
    if not file.parent.is_dir():
        raise ConfigError(f"{file} cannot be written: there is no folder {file.parent}.", _FIX)
    try:
        staging.check_writable(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error}.", _FIX) from error


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file in one step: until it is complete, what was there stays.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        staging.write_whole(file, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error}.", _FIX) from error
