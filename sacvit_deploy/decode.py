"""JSON within bounds; and plain data, as JSON and TOML have it, to frozen dataclasses and back.

Type hints say what a value has to be: a nested dataclass, `tuple`, `dict[str, X]`, `Literal`,
`Path`, `X | None`, or a union, of which the first kind that fits counts. An int serves as a float,
a bool is not a number, and no number is infinite. Other hints accept everything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.files import open_regular

_T = TypeVar("_T")

# Bounds of JSON: enough for the names of a million classes, and for every integer of 64 bits.
_LARGEST_TEXT = 32 << 20
_DEEPEST = 64
_MOST_DIGITS = 20
_SURROGATE = re.compile("[\ud800-\udfff]")

OPTIONAL = {"optional": True}
"""Metadata of a dataclass field that `encode` leaves out where it is None."""


def decode(kind: type[_T], values: object, path: str = "", *, refuse_unknown: bool = False) -> _T:
    """Build a dataclass from plain values; parts that are built already stay as they are.

    Args:
        kind: The dataclass.
        values: Plain value by field name. A field with a default may be left out.
        path: Name of `values` in errors; empty at the top.
        refuse_unknown: Refuse names that are no fields; otherwise they are ignored.

    Raises:
        ConfigError: A value is missing or of another type. The problem names its place, such as
            `graphs[1].inputs[0].shape`. Errors of `kind` itself pass through.
    """
    decoded: _T = _Decoder(refuse_unknown).record(kind, values, path)
    return decoded


def read_bounded(file: Path) -> bytes:
    """Read a file of JSON; one of more than 32 MiB is refused by its size.

    Raises:
        ConfigError: It is larger.
        OSError: It cannot be read, or is not a regular file.
    """
    with open_regular(file) as stream:
        _check_size(file.name, os.fstat(stream.fileno()).st_size)
        content = stream.read(_LARGEST_TEXT + 1)
    _check_size(file.name, len(content))
    return content


def parse_json(text: str | bytes, name: str) -> Any:
    """Parse JSON of at most 32 MiB, 64 levels, 20 digits per integer, finite numbers and Unicode.

    Args:
        text: What is parsed.
        name: What it is, to begin the problem with.

    Raises:
        ConfigError: It is not JSON, or out of these bounds.
    """
    _check_size(name, len(text))
    try:
        values = json.loads(
            text, parse_int=_whole_number, parse_float=_finite_number, parse_constant=_no_number
        )
        _check_levels(values)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid JSON: {error}.", "Write the file again.") from error
    return values


def _check_size(name: str, size: int) -> None:
    if size > _LARGEST_TEXT:
        raise ConfigError(
            f"{name} has {size} bytes; at most {_LARGEST_TEXT} are read.", "Write the file again."
        )


def _whole_number(text: str) -> int:
    if len(text.lstrip("-")) > _MOST_DIGITS:
        raise ValueError(f"an integer has more than {_MOST_DIGITS} digits")
    return int(text)


def _finite_number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError("a number is too large")
    return number


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _check_levels(values: Any) -> None:
    """Raise `ValueError` if JSON is nested too deep or a string is not Unicode."""
    level = [values]
    for _ in range(_DEEPEST):
        strings = (value for value in level if isinstance(value, str) and not value.isascii())
        if any(map(_SURROGATE.search, strings)):
            raise ValueError("a string has half a surrogate pair")
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {_DEEPEST} levels")


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
    if isinstance(value, dict | list):
        yield from value.values() if isinstance(value, dict) else value


def shown(value: object) -> str:
    """Represent a value in a problem, in at most some hundred characters."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python shows no integer of more than some thousand digits
        return "a number with thousands of digits"


def encode(value: Any) -> Any:
    """Turn dataclasses, paths and what holds them into plain data that `decode` reads back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {
            field.name: encode(inner)
            for field, inner in named.items()
            if inner is not None or field.metadata != OPTIONAL
        }
    if isinstance(value, dict):
        return {key: encode(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [encode(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def check_field(holds: bool, name: str, found: object, wanted: str) -> None:
    """Raise `ConfigError` unless a value of a configuration holds.

    Args:
        holds: Whether the value is allowed.
        name: Name of the field.
        found: The value.
        wanted: What is allowed, as in "Make it {wanted}".
    """
    if not holds:
        _refuse(name, found, wanted)


def check_types(config: object) -> None:
    """Raise `ConfigError` if a field of a dataclass is not of the type its hint says.

    Call it in `__post_init__`: a caller without a type checker may pass anything.
    """
    kind: Any = type(config)
    for name, hint in _hints(kind).items():
        value = getattr(config, name)
        decoded = _Decoder(refuse_unknown=True).value(hint, value, name)
        # A list would decode to a tuple, and is none.
        check_field(decoded == value, name, value, f"a {type(decoded).__name__}")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@dataclasses.dataclass(frozen=True)
class _Decoder:
    refuse_unknown: bool

    def value(self, hint: Any, found: object, path: str) -> Any:
        if dataclasses.is_dataclass(hint):
            return self.record(hint, found, path)
        read = _READERS.get(get_origin(hint) or hint)
        return found if read is None else read(self, hint, found, path)

    def record(self, kind: Any, found: object, path: str) -> Any:
        if isinstance(found, kind):
            return found
        if not isinstance(found, Mapping):
            _refuse(path or "the top level", found, _WANTED[dict])
        prefix = f"{path}." if path else ""
        fields = {field.name: field for field in dataclasses.fields(kind)}
        unknown = [f"{prefix}{name}" for name in found if name not in fields]
        if unknown and self.refuse_unknown:
            raise ConfigError(
                f"Unknown field: {', '.join(unknown)}.", f"Known fields: {', '.join(fields)}."
            )
        built = {}
        for name, field in fields.items():
            if name in found:
                built[name] = self.value(_hints(kind)[name], found[name], prefix + name)
            elif field.default is field.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{prefix}{name} is missing.", "Add it.")
        return kind(**built)

    def sequence(self, hint: Any, found: object, path: str) -> tuple[Any, ...]:
        kinds = get_args(hint)
        is_open = kinds[-1] is Ellipsis
        if not isinstance(found, list | tuple) or not (is_open or len(found) == len(kinds)):
            _refuse(path, found, "a list" if is_open else f"a list of {len(kinds)}")
        each = kinds[:1] * len(found) if is_open else kinds
        items = zip(each, found, strict=True)
        return tuple(self.value(kind, x, f"{path}[{i}]") for i, (kind, x) in enumerate(items))

    def mapping(self, hint: Any, found: object, path: str) -> dict[Any, Any]:
        if not isinstance(found, Mapping):
            _refuse(path, found, _WANTED[dict])
        key_kind, kind = get_args(hint)
        keys = {key: self.value(key_kind, key, f"a name in {path}") for key in found}
        return {
            keys[key]: self.value(kind, inner, f"{path}[{shown(key)}]")
            for key, inner in found.items()
        }

    def choice(self, hint: Any, found: object, path: str) -> Any:
        for allowed in get_args(hint):
            if type(found) is type(allowed) and found == allowed:
                return allowed
        return _refuse(path, found, f"one of {', '.join(map(repr, get_args(hint)))}")

    def union(self, hint: Any, found: object, path: str) -> Any:
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        if found is None and len(kinds) < len(get_args(hint)):
            return None
        if len(kinds) == 1:
            return self.value(kinds[0], found, path)
        for kind in kinds:
            with contextlib.suppress(ConfigError):
                return self.value(kind, found, path)
        return _refuse(
            path, found, " or ".join(_WANTED[get_origin(kind) or kind] for kind in kinds)
        )

    def plain(self, hint: Any, found: Any, path: str) -> Any:
        accepted = _ACCEPTED.get(hint, hint)
        fits = isinstance(found, accepted) and (hint is bool or not isinstance(found, bool))
        # NaN fails every comparison.
        if not fits or (hint is float and not abs(found) <= sys.float_info.max):
            _refuse(path, found, _WANTED[hint])
        return hint(found)


_ACCEPTED: dict[Any, Any] = {float: int | float, Path: str | Path}
_WANTED: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    str: "a string",
    bool: "true or false",
    Path: "a path",
    dict: "a mapping of names to values",
}
_READERS: dict[Any, Callable[[_Decoder, Any, Any, str], Any]] = {
    **dict.fromkeys((int, float, str, bool, Path), _Decoder.plain),
    **dict.fromkeys((Union, UnionType), _Decoder.union),
    tuple: _Decoder.sequence,
    dict: _Decoder.mapping,
    Literal: _Decoder.choice,
}


def _refuse(path: str, found: object, wanted: str) -> NoReturn:
    raise ConfigError(f"{path} is {shown(found)}.", f"Make it {wanted}.")
