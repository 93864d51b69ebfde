"""Every error the package raises on purpose, and the place its warnings name.

    SacvitDeployError
    ├── ConfigError              a model or preprocessing configuration that cannot exist
    ├── MissingDependencyError   an optional library is not installed
    ├── ImageError               a picture that cannot be read
    │   └── PicturesError        some of a list; it holds the results of the others
    ├── DataError                a data set that cannot be read
    ├── GoalError                no exit threshold meets what was asked for
    ├── CheckpointError          weights that do not belong to the model
    ├── ExportError              an ONNX graph that could not be written
    │   ├── ParityError          the ONNX graph does not compute what the torch model computes
    │   └── PrecisionError       FP16 or INT8 changes the decisions of the network
    ├── BundleError              a bundle that cannot be used
    │   ├── BundleVersionError   written by a newer release
    │   └── BundleIntegrityError a file is missing or changed since it was written
    └── EngineError              a backend refused or is not available

Each carries a `problem` (what was asked and what was found) and a `fix` (what to do next).
The command line prints both and exits with 1; a traceback is a defect.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Characters of a problem and of a fix: names and values from a file may have any length.
_LONGEST_PROBLEM, _LONGEST_FIX = 1400, 500
_SHOWN_FAILURES = 3


class SacvitDeployError(Exception):
    """Base of the tree: one problem and its fix; together they stay below 2,000 characters.

    Args:
        problem: What was asked and what was found, one or more lines, no trailing newline.
        fix: What the user can do about it.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem, fix)
        self.problem = _shortened(problem, _LONGEST_PROBLEM)
        self.fix = _shortened(fix, _LONGEST_FIX)

    def __str__(self) -> str:
        return f"{self.problem}\n{self.fix}"


def _shortened(text: str, most: int) -> str:
    half = (most - 5) // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


class ConfigError(SacvitDeployError):
    """A configuration that cannot exist, such as an image size the patches do not divide."""


class MissingDependencyError(SacvitDeployError):
    """An optional library is needed and not installed."""


class ImageError(SacvitDeployError):
    """A picture that cannot be read: not an image, truncated, empty, or too large."""


class PicturesError(ImageError):
    """Some pictures of a list cannot be read.

    Attributes:
        results: One result for each picture of the list, in order; None where it cannot be read.
        failures: What is wrong, by the position of the picture in the list.
    """

    results: list[Any]
    failures: dict[int, ImageError]

    @classmethod
    def of(cls, results: Sequence[Any], failures: Mapping[int, ImageError]) -> PicturesError:
        """Make the error of a list of which some pictures failed."""
        told = [failure.problem for failure in failures.values()]
        if len(told) > 1:
            count = f"{len(told)} of {len(results)} pictures cannot be read."
            told = [count, *told[:_SHOWN_FAILURES], *["..."][: max(0, len(told) - _SHOWN_FAILURES)]]
        fix = next(iter(failures.values())).fix
        error = cls("\n".join(told), f"{fix} This error holds the results of the others.")
        error.results, error.failures = list(results), dict(failures)
        return error


class DataError(SacvitDeployError):
    """A labelled data set that cannot be read."""


class GoalError(SacvitDeployError):
    """No exit threshold meets what was asked for; the problem says how near the nearest comes."""


class CheckpointError(SacvitDeployError):
    """Weights that cannot be read or do not belong to the model."""


class ExportError(SacvitDeployError):
    """An ONNX graph that could not be written."""


class ParityError(ExportError):
    """The exported graph and the torch model disagree beyond the tolerance."""


class PrecisionError(ExportError):
    """A lower precision changes the decisions of the network beyond the limits."""


class BundleError(SacvitDeployError):
    """A bundle that cannot be read or written."""


class BundleVersionError(BundleError):
    """The bundle was written by a newer release of this package."""


class BundleIntegrityError(BundleError):
    """A file of the bundle is missing or is not the one that was written."""


class EngineError(SacvitDeployError):
    """A backend is not available, or refused a graph or its inputs."""


@contextlib.contextmanager
def raised_as(
    kind: type[SacvitDeployError],
    problem: str,
    fix: str,
    errors: type[Exception] | tuple[type[Exception], ...] = OSError,
) -> Iterator[None]:
    """Raise errors of the block that come from elsewhere as one of this package.

    Args:
        kind: Class to raise.
        problem: Problem without its reason, which follows after a colon.
        fix: What the user can do about it.
        errors: Classes to catch.
    """
    try:
        yield
    except errors as error:
        raise kind(f"{problem}: {_reason(error, problem)}.", fix) from error


def _reason(error: Exception, problem: str) -> str:
    """The message, without the number of the system and a path that the problem names."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        named = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None
        if named is not None and _names(problem, named) and error.filename2 is None:
            return error.strerror
    return str(error)


def _names(problem: str, path: str) -> bool:
    """Whether a problem has a path as a word of its own, and not inside another one."""
    return re.search(rf"(?<![^\s'\"]){re.escape(path)}(?![^\s'\"])", problem) is not None


def interrupt_in(error: BaseException) -> KeyboardInterrupt | None:
    """Find what an error was raised because of; some libraries wrap `KeyboardInterrupt`.

    Its first argument is the number of the signal if that was SIGTERM; see `files.interrupt`.
    """
    links, seen = [error], set()
    while links:
        link = links.pop()
        if isinstance(link, KeyboardInterrupt):
            return link
        seen.add(id(link))
        links += [e for e in (link.__cause__, link.__context__) if e and id(e) not in seen]
    return None


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn, and name the line outside this package that led here."""
    package, frame, level = __name__.partition(".")[0], sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
