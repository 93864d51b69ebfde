"""The bar that shows the progress of long work on a terminal."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from typing import Any, TextIO

import click

_STEPS, _WIDTH = 1000, 20
# Brackets, share and spaces around the bar and its text; a full last column would start a new line.
_AROUND = 10
_ERASE = "\r\033[K"


class Progress(contextlib.ExitStack):
    """Progress of long work as one bar on stderr; in a pipe, nothing.

    The bar lasts from its first report to the end of the `with` block. Other lines that are written
    to `sys.stderr` meanwhile appear above it.
    """

    _bar: Any = None

    def bar(self, share: float, text: str) -> None:
        """Report the share of the work done, in [0, 1], which never falls, and a short text."""
        if self._bar is None:
            if not sys.stderr.isatty():
                return
            self._bar = self._drawn(sys.stderr)
        self._bar.update(max(0, round(share * _STEPS) - self._bar.pos), text)

    def _drawn(self, stream: TextIO) -> Any:
        room = max(0, _columns(stream) - _WIDTH - _AROUND)
        shown: Any = click.progressbar(
            length=_STEPS,
            file=stream,
            width=_WIDTH,
            bar_template="[%(bar)s] %(info)s",
            item_show_func=lambda text: (text or "")[:room],
            show_eta=False,
            update_min_steps=0,  # a new text is shown although the share is the same
        )
        drawn = self.enter_context(shown)
        self.enter_context(contextlib.redirect_stderr(_AboveBar(stream, drawn)))
        return drawn


def _columns(stream: TextIO) -> int:
    """Width of the terminal of a stream; `shutil` alone asks stdout, which may be a file."""
    with contextlib.suppress(OSError, ValueError):
        own = os.get_terminal_size(stream.fileno()).columns
        if own and "COLUMNS" not in os.environ:
            return own
    return shutil.get_terminal_size().columns


class _AboveBar:
    """A stream whose lines erase the bar, which is drawn again below them."""

    def __init__(self, stream: TextIO, bar: Any) -> None:
        self._stream, self._bar = stream, bar

    def write(self, text: str) -> int:
        if text and self._bar._last_line is not None:  # the bar is in this line
            self._stream.write(_ERASE)
            self._bar._last_line = None  # else it is not drawn while it is the same
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
