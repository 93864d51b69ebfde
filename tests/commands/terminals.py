"""A pseudo-terminal for stderr, and what was drawn on it."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

_END = b"\0"
_BAR = re.compile(r"\[([#-]*)\] +(\d+)%( +[^\r\n\x1b]*)?")


@dataclass
class Terminal:
    """What was written to a terminal.

    Attributes:
        text: All of it.
    """

    text: str = ""
    _parts: list[bytes] = field(default_factory=list)

    @property
    def shares(self) -> list[int]:
        """Percentages of all bars that were drawn."""
        return [int(found[2]) for found in _BAR.finditer(self.text)]

    @property
    def words(self) -> list[str]:
        """Texts of all bars that were drawn."""
        return [(found[3] or "").strip() for found in _BAR.finditer(self.text)]

    @property
    def last_bar(self) -> str:
        """The bar that is left."""
        *_, last = _BAR.finditer(self.text)
        return last[1]

    def read(self, master: int) -> None:
        """Read until the sign of the end; other processes may keep the terminal open."""
        while not (self._parts and self._parts[-1].endswith(_END)):
            self._parts.append(os.read(master, 4096))

    def end(self) -> None:
        """Join what was read."""
        self.text = b"".join(self._parts).removesuffix(_END).decode()


@contextlib.contextmanager
def terminal_for_stderr(monkeypatch: pytest.MonkeyPatch, columns: int = 0) -> Iterator[Terminal]:
    """Let stderr be a terminal, of unknown width for 0; the result is complete after the block."""
    pty = pytest.importorskip("pty", reason="needs pseudo-terminals")
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = Terminal()
    reader = threading.Thread(target=shown.read, args=[master])
    reader.start()
    try:
        with os.fdopen(slave, "w", encoding="utf-8") as stream, monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", stream)
            try:
                yield shown
            finally:
                stream.write(_END.decode())
    finally:
        reader.join()
        os.close(master)
        shown.end()
