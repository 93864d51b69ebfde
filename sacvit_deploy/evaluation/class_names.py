"""Matches the classes of a data set with the labels of a network: by name, never by position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sacvit_deploy.class_labels import file_of, pairs_of_json
from sacvit_deploy.decode import parse_json, read_bounded
from sacvit_deploy.errors import ConfigError, DataError, raised_as

_SHOWN = 3
_FORMS = (
    'Give a JSON object {"id": "name", ...}, a JSON list of {"wnid": ..., "name": ...}, or a text '
    "file with an id, a space and a name on each line; or imagenet-1k."
)


def read_class_names(file: Path) -> dict[str, str]:
    """Read the names of the classes of a data set whose classes are ids.

    Args:
        file: JSON, either an object of id to name or a list of objects with `name` and `id` or
            `wnid`; or text with one id and one name a line; or `imagenet-1k`, for the list of the
            package.

    Raises:
        DataError: The file cannot be read, is none of these, or gives one id two names.
    """
    try:
        pairs = _pairs(file)
    except ConfigError as error:  # it is too large, or no JSON
        raise DataError(error.problem, _FORMS) from error
    if not pairs:
        raise DataError(f"{file} names no class.", _FORMS)
    names = dict(pairs)
    twice = sorted({key for key, name in pairs if names[key] != name})
    if twice:
        raise DataError(f"{file} gives {_some(twice)} more than one name.", "Keep one of them.")
    return names


def match_classes(
    classes: Sequence[str], labels: Sequence[str], class_names: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Find the label of each class of a data set.

    The classes are labels themselves, or else ids whose names in `class_names` are labels. Case,
    underscores and spaces do not count.

    Args:
        classes: Classes of the data; a label may have none.
        labels: Labels of the network, in class order.
        class_names: Names of ids.

    Returns:
        Index of the label, by class of the data.

    Raises:
        DataError: A class is no label or could be several, or two classes are the same label.
    """
    places: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        places.setdefault(_plain(label), []).append(index)
    named = {name: name for name in classes}
    if class_names is not None and not _all_in(named.values(), places):
        named = {name: class_names.get(name, name) for name in classes}
    if not _all_in(named.values(), places):
        raise _mismatch(named, labels, places, class_names)
    found = {name: places[_plain(label)] for name, label in named.items()}
    _check_unique(found, labels)
    return {name: indices[0] for name, indices in found.items()}


def _pairs(file: Path) -> list[tuple[str, str]]:
    unreadable = OSError, UnicodeDecodeError
    with raised_as(DataError, f"The class names {file} cannot be read", _FORMS, unreadable):
        text = read_bounded(file_of(file)).decode("utf-8-sig")
    wrong = ValueError, TypeError, LookupError
    with raised_as(DataError, f"{file} does not give names of classes", _FORMS, wrong):
        if text.lstrip()[:1] in ("{", "["):
            pairs = pairs_of_json(parse_json(text, str(file)))
            if any(key is None for key, _ in pairs):
                raise ValueError("it has names without ids")
            return [(str(key), name) for key, name in pairs]
        return _text_pairs(text)


def _text_pairs(text: str) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split(maxsplit=1)
        if len(words) == 1:
            raise ValueError(f"line {number} is one word, {words[0]!r}")
        if words:
            pairs.append((words[0], words[1].strip()))
    return pairs


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _all_in(names: Iterable[str], places: Mapping[str, object]) -> bool:
    return all(_plain(name) in places for name in names)


def _mismatch(
    named: Mapping[str, str],
    labels: Sequence[str],
    places: Mapping[str, object],
    class_names: Mapping[str, str] | None,
) -> DataError:
    unknown = [name for name, label in named.items() if _plain(label) not in places]
    fix = (
        "Give data of these classes. If its classes are ids, give their names with --class-names: "
        "a file, or imagenet-1k."
    )
    if class_names is not None:
        fix = f"The ids in the class names are {_some(class_names)}; check that they fit the data."
    return DataError(
        f"{len(unknown)} of the {len(named)} classes of the data are not labels of the bundle: "
        f"{_some(unknown)}. Its {len(labels)} labels are {_some(labels)}.",
        fix,
    )


def _check_unique(found: Mapping[str, Sequence[int]], labels: Sequence[str]) -> None:
    takers: dict[int, str] = {}
    for name, indices in found.items():
        if len(indices) > 1:
            raise DataError(
                f"The class {name!r} could be each of the labels {indices}, which are all "
                f"{labels[indices[0]]!r}.",
                "Export the bundle with --labels that tell its classes apart.",
            )
        if indices[0] in takers:
            raise DataError(
                f"The classes {takers[indices[0]]!r} and {name!r} of the data are both the label "
                f"{labels[indices[0]]!r}.",
                "Join their folders, or correct the class names.",
            )
        takers[indices[0]] = name


def _some(names: Iterable[str]) -> str:
    """List the first few."""
    every = list(names)
    shown = ", ".join(map(repr, every[:_SHOWN]))
    return f"{shown} and {len(every) - _SHOWN} more" if len(every) > _SHOWN else shown
