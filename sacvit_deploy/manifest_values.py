"""Values of `bundle.json`, checked as they are read.

A missing key or a value of the wrong type is an error that names it.
"""

from __future__ import annotations

import math
import numbers
import reprlib
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from sacvit_deploy.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

Precision = Literal["fp32", "fp16", "int8"]
EngineRuntime = Literal["tensorrt", "tensorrt-rtx"]
Runtime = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]

EXPORT_AGAIN = "Export the bundle again."

_T = TypeVar("_T")


def check_eta(eta: float) -> float:
    """The exit threshold as a float.

    Raises:
        ConfigError: It is not a number in [0, 1]; NaN is not.
    """
    if isinstance(eta, bool) or not isinstance(eta, numbers.Real) or not 0 <= float(eta) <= 1:
        raise ConfigError(
            f"The exit threshold eta is {eta!r}.",
            "Make it a number from 0 (every picture exits early) to 1 (none does).",
        )
    return float(eta)


def typed(values: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
    """The value of a key, which has to be there and of that type.

    Raises:
        BundleError: It is neither, or a bool.
    """
    found = values.get(key)
    if not isinstance(found, kind) or isinstance(found, bool):
        what = f"is {reprlib.repr(found)}" if key in values else "is missing"
        raise BundleError(
            f"The value of {key!r} {what}; a {kind.__name__} is needed.", EXPORT_AGAIN
        )
    return found


def real(values: Mapping[str, Any], key: str) -> float:
    """As `typed`, for a finite number with or without a fraction."""
    found = float(typed(values, key, numbers.Real))  # type: ignore[type-abstract]
    if not math.isfinite(found):
        raise BundleError(f"The value of {key!r} is {found}.", EXPORT_AGAIN)
    return found


def all_typed(values: Mapping[str, Any], key: str, kind: type[_T]) -> list[_T]:
    """As `typed`, for a list of values of one type."""
    found = typed(values, key, list)
    return [typed({f"{key}[{i}]": item}, f"{key}[{i}]", kind) for i, item in enumerate(found)]


def all_real(values: Mapping[str, Any], key: str) -> tuple[float, ...]:
    """As `typed`, for a list of numbers."""
    return tuple(real({key: item}, key) for item in typed(values, key, list))


def objects_or_none(values: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """As `all_typed`, for objects; none where the key is absent, as in older bundles."""
    return all_typed(values, key, dict) if key in values else []


def choice(values: Mapping[str, Any], key: str, choices: Any) -> Any:
    """The value of a key, which has to be one of a `Literal`.

    Raises:
        BundleError: It is not.
    """
    found = typed(values, key, str)
    if found not in get_args(choices):
        wanted = ", ".join(get_args(choices))
        raise BundleError(f"The value of {key!r} is {found!r}, not one of {wanted}.", EXPORT_AGAIN)
    return found
