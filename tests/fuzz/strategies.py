"""Hostile inputs, and what has to hold for each of them.

A case is a small description, such as `Edit("set", ("eta",), "NaN")`, and not the file made from
it, so that a failure prints what was done.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import re
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from hypothesis import strategies as st

from sacvit_deploy.cli import main
from sacvit_deploy.errors import SacvitDeployError

# The property

LONGEST_MESSAGE = 2_000
MOST_CPU_S = 10
_WAITS_FOREVER_S = 300
_MORE_MEMORY = 4 << 30


class _Overdue(BaseException):
    """No `Exception`, which the code under test may catch."""


def check_refusals(*calls: Callable[[], object]) -> None:
    """Make calls that may only return or raise an error of the package.

    Any other exception, a long message, 10 s of CPU, waiting forever, and 4 GiB of memory fail.
    """
    start = time.process_time()
    messages = [_message(call) for call in calls]
    assert time.process_time() - start < MOST_CPU_S
    assert max(map(len, messages)) < LONGEST_MESSAGE


def _message(call: Callable[[], object]) -> str:
    try:
        # Pillow and torch warn about what they then read or refuse.
        with _limits(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except SacvitDeployError as error:
        return str(error)
    except _Overdue as error:
        raise AssertionError(str(error)) from error
    return ""


def command(*arguments: str) -> Callable[[], None]:
    """A call of the command line, whose failure is raised as an error of the package."""

    def call() -> None:
        result = CliRunner().invoke(main, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in (0, 1, 2)
        if result.exit_code:
            raise SacvitDeployError(result.stderr, "")
        if "--json" in arguments and result.stdout.startswith(("{", "[")):
            json.loads(result.stdout, parse_constant=_no_constant)

    return call


def _no_constant(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    cpu, wall = time.process_time(), time.monotonic()

    def look(*_: object) -> None:
        if time.process_time() - cpu > MOST_CPU_S:
            raise _Overdue(f"It takes more than {MOST_CPU_S} s of CPU.")
        if time.monotonic() - wall > _WAITS_FOREVER_S:
            raise _Overdue("It waits forever.")

    handler = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 5, 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + _MORE_MEMORY, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


# Bytes


@dataclass(frozen=True)
class Damage:
    """Changes to the bytes of a named content, one after the other."""

    name: str
    changes: tuple[tuple[str, int, Any], ...]

    def of(self, content: bytes) -> bytes:
        data = bytearray(content)
        for what, at, value in self.changes:
            if what == "flip" and at < len(data):
                data[at] ^= 1 << value
            elif what == "write":
                data[at : at + len(value)] = value
            elif what == "insert":
                data[at:at] = value
            elif what == "remove":
                del data[at : at + value]
            elif what == "cut":
                del data[at:]
        return bytes(data)


_FIELDS = st.one_of(
    st.sampled_from([b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]),
    st.sampled_from([b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\x80\x7f", b"\xff" * 8]),
    st.binary(min_size=1, max_size=9),
)


@st.composite
def damages(draw: st.DrawFn, contents: Mapping[str, bytes]) -> Damage:
    """Bits flipped, bytes written, inserted and removed, ends cut off."""
    name = draw(st.sampled_from(sorted(contents)))
    size = len(contents[name])
    # Headers are short, and decide most.
    place = st.integers(0, min(size, 200)) | st.integers(0, size)
    change = st.one_of(
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("write"), place, _FIELDS),
        st.tuples(st.just("insert"), place, _FIELDS),
        st.tuples(st.just("remove"), place, st.integers(1, 9)),
        st.tuples(st.just("cut"), place, st.none()),
    )
    return Damage(name, tuple(draw(st.lists(change, min_size=1, max_size=4))))


# JSON

_TEXT_OF = {
    "null": "null",
    "true": "true",
    "0": "0",
    "1": "1",
    "-1": "-1",
    "0.5": "0.5",
    '""': '""',
    "[]": "[]",
    "{}": "{}",
    "-0.0": "-0.0",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "1e999": "1e999",
    "1e308": "1e308",
    "1e-308": "1e-308",
    "5e-324": "5e-324",
    "10**4": "10000",
    "10**9": "1000000000",
    "2**63": str(2**63),
    "10**400": "1" + "0" * 400,
    "10**5000": "1" + "0" * 5000,
    "-10**400": "-1" + "0" * 400,
    "float 10**400": "1" + "0" * 400 + ".0",
    "lone surrogate": '"\\ud800"',
    "NUL": '"a\\u0000b"',
    "escape": '"\\u001b[2J\\r\\n"',
    "long string": '"' + "x" * 1_000_000 + '"',
    "long list": "[" + "0," * 100_000 + "0]",
    "long dict": "{" + ",".join(f'"{i}":0' for i in range(20_000)) + "}",
    "nested lists": "[" * 10_000 + "]" * 10_000,
    "nested dicts": '{"a":' * 10_000 + "0" + "}" * 10_000,
    "same key twice": '{"a":1,"a":[]}',
    "way out": '"../../etc/passwd"',
    "absolute": '"/etc/passwd"',
    "drive": '"C:\\\\x"',
    "folder": '"."',
    "nan string": '"nan"',
    "not JSON": "]",
}
_KEYS = ("", "x", "\ud800", "a\0b", "y" * 5_000, "__class__", "../x", "sac.onnx", "fp64")

Path_ = tuple[str | int, ...]
_TOKEN = re.compile(r'"@@([^"]*)@@"')
_DIGEST = re.compile(rb'(?<="digest": ")[0-9a-f]{64}(?=")')


@dataclass(frozen=True)
class Edit:
    """One change of a document: `set`, `drop`, or `add` a key, at a path of keys and indices."""

    what: str
    path: Path_
    value: Any = None
    key: str = ""

    def __repr__(self) -> str:
        key = "" if self.what != "add" else f", key={self.key[:20]!r}"
        return f"Edit({self.what!r}, {self.path!r}, {self.value!r}{key})"


def edited(document: Any, edits: Sequence[Edit]) -> bytes:
    """Text of a document after the edits; those whose place is gone do nothing."""
    changed = [copy.deepcopy(document)]
    for edit in edits:
        holder: Any = changed
        last, *rest = reversed((0, *edit.path))
        with contextlib.suppress(LookupError, TypeError):
            for step in reversed(rest):
                holder = holder[step]
            if edit.what == "drop":
                del holder[last]
            elif edit.what == "add":
                holder[last][edit.key] = edit.value
            else:
                holder[last] = edit.value
    text = json.dumps(changed[0] if changed else None)
    return _TOKEN.sub(lambda found: _TEXT_OF[found[1]], text).encode()


def sealed(text: bytes) -> bytes:
    """The text of a bundle.json with the digest that belongs to it, to pass that check."""
    blank = _DIGEST.sub(b"0" * 64, text, count=1)
    return _DIGEST.sub(hashlib.sha256(blank).hexdigest().encode(), blank, count=1)


def json_values() -> st.SearchStrategy[Any]:
    """Values of any type; long and nested ones by name."""
    named = st.sampled_from([f"@@{name}@@" for name in _TEXT_OF])
    plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    nested = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | _dicts(inner))
    return named | named | nested


def _dicts(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.text(max_size=4), inner, max_size=3)


def edits(document: Any) -> st.SearchStrategy[tuple[Edit, ...]]:
    """One to three edits at any places of a document."""
    path = st.sampled_from(list(_paths(document)))
    return st.lists(
        st.one_of(
            st.builds(Edit, st.just("set"), path, json_values()),
            st.builds(Edit, st.just("drop"), path),
            st.builds(Edit, st.just("add"), path, json_values(), st.sampled_from(_KEYS)),
        ),
        min_size=1,
        max_size=3,
    ).map(tuple)


def _paths(document: Any, path: Path_ = ()) -> Iterator[Path_]:
    yield path
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    for step, inner in items:
        yield from _paths(inner, (*path, step))


# Python values

_ODD_INTEGERS = (0, 1, -1, 2, 2**31, 2**63, 10**30, 10**400, -(10**400), 10**4999)
_ODD_OBJECTS = (
    object(),
    int,
    len,
    ...,
    NotImplemented,
    1j,
    range(3),
    np.float32("nan"),
    np.int64(1),
    np.bool_(True),
    np.str_("fp32"),
    np.array(0.0),
    np.zeros(3, np.uint8),
    np.zeros((5, 4, 3), np.uint8),
    np.zeros((5, 4), np.uint8),
    np.zeros((1, 3, 64, 64), np.float32),
    np.zeros((0, 3, 64, 64), np.float32),
    np.zeros((1, 3, 64, 63), np.float32),
    np.zeros((1, 3, 64, 64), np.float64),
    np.full((1, 3, 64, 64), np.nan, np.float32),
    np.array([None, "x"], dtype=object),
    np.zeros(2, "datetime64[s]"),
    np.zeros(2, [("a", "i4")]),
)


def anything() -> st.SearchStrategy[Any]:
    """Values of any type that a caller may pass."""
    strings = ["x" * 5_000, "\ud800", "a\0b", "auto", "CPU", "fp32"]
    letters = st.characters(exclude_categories=["Cs"])
    simple = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 9),
        st.sampled_from(_ODD_INTEGERS),
        st.floats(),
        st.text(letters, max_size=9),
        st.sampled_from(strings),
        st.binary(max_size=9),
        st.builds(Path, st.sampled_from(["", "x", "\udcff"])),
        st.sampled_from(_ODD_OBJECTS),
    )
    several = st.lists(simple, max_size=3)
    return st.one_of(simple, simple, several, several.map(tuple), several.map(iter), _dicts(simple))
