"""A module `tensorrt` for the process that builds: TensorRT-RTX under that name.

TensorRT itself cannot be installed here. It has nearly the same API, so the loaders for TensorRT
build with it. The module is a file on `sys.path`, which the process takes over.
"""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

_MODULE = """\
import os, signal, sys, time
from tensorrt_rtx import *

__version__ = "10.3.0"
"""


def install_stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str = "") -> None:
    """Put the module on `sys.path` until the test ends.

    Args:
        folder: An empty folder for it.
        monkeypatch: Removes it.
        code: What differs from TensorRT-RTX; runs where the module is imported.
    """
    package = folder / "stand-in" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_MODULE + textwrap.dedent(code))
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # so that it goes after the test
    monkeypatch.delitem(sys.modules, "tensorrt")
