"""TODO."""

from __future__ import annotations

import math
import numbers
import reprlib
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from sacvit_deploy.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


EXPORT_AGAIN = "Export the bundle again."

_T = TypeVar("_T")


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


def check_field(holds: bool, name: str, found: object, wanted: str) -> None:
    """Refuse a value of a configuration.

    Args:
        holds: Whether the value is right.
        name: Of the field.
        found: The value.
        wanted: What would be right, as in "Make it {wanted}".

    Raises:
        ConfigError: It does not hold.
    """
    if not holds:
        raise ConfigError(f"{name} is {found!r}.", f"Make it {wanted}.")


def check_types(config: object) -> None:
    """Refuse a configuration whose fields are not what their annotations say.

    A file or a command line may bring anything.

    Raises:
        ConfigError: A value is of another type, or not one of the choices.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal:
            wanted = "one of " + ", ".join(map(repr, get_args(hint)))
            check_field(value in get_args(hint), name, value, wanted)
        elif get_origin(hint) is tuple:
            kinds = get_args(hint)
            fits = isinstance(value, tuple) and len(value) == len(kinds)
            fits = fits and all(map(_is_a, value, kinds))
            check_field(fits, name, value, f"{len(kinds)} numbers")
        elif hint in (int, float):
            check_field(_is_a(value, hint), name, value, f"of type {hint.__name__}")


def _is_a(value: object, kind: type) -> bool:
    """As a type checker sees it: an int is a float, and a bool is neither."""
    accepted = (int, float) if kind is float else kind
    return isinstance(value, accepted) and not isinstance(value, bool)
