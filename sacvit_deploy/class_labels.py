"""Names of classes in class order, from a file or from the lists of the package."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from sacvit_deploy.decode import parse_json, read_bounded
from sacvit_deploy.errors import ConfigError, raised_as

# Pairs of WordNet id and name in class order. The names are those of torchvision 0.29, whose
# classes all differ; the ids are their places among the sorted ids of ILSVRC 2012.
_LISTS = {"imagenet-1k": "imagenet-1k.txt"}

_SHOWN = 3
_ID_KEYS = ("id", "wnid")
_WORDNET_ID = re.compile(r"n\d{8}")
_FORMS = (
    "Give a text file with a name, or an id such as n02123045 and a name, on each line; or JSON: a "
    'list of names, a list of {"wnid": ..., "name": ...}, or an object of number or id to name; '
    f"or one of {', '.join(_LISTS)}."
)


def labels(source: str | Path) -> tuple[str, ...]:
    """Names of classes in class order.

    Args:
        source: `imagenet-1k`, or a file: text with a name on each line, or with an id and a name;
            a JSON list of names or of objects with `name` and `id` or `wnid`; a JSON object of
            number or id to name. With WordNet ids the classes are in the order of the ids, as in
            every network that was trained on folders of these names.

    Raises:
        ConfigError: The file cannot be read, is none of these, or names two classes alike.
    """
    found = _in_class_order(_read_pairs(file_of(source)), str(source))
    return _all_different(tuple(name for _, name in found), str(source))


def _all_different(names: tuple[str, ...], source: str) -> tuple[str, ...]:
    alike = [name for name, count in Counter(names).items() if count > 1]
    if alike:
        places = [str(1 + at) for at, name in enumerate(names) if name == alike[0]]
        raise ConfigError(
            f"{source} has {len(alike)} name{'s' * (len(alike) > 1)} more than once, such as "
            f"{alike[0]!r} for the classes {', '.join(places[:_SHOWN])}, counted from 1.",
            "Make them different, such as 'crane (bird)'.",
        )
    return names


def file_of(source: str | Path) -> Path:
    """File of a list of the package, such as `imagenet-1k`; any other source is a file itself."""
    known = _LISTS.get(str(source))
    if known is None:
        return Path(source)
    return Path(str(resources.files("sacvit_deploy") / "assets" / known))


def labels_for(source: str | Path | Sequence[str], classes: int) -> tuple[str, ...]:
    """Labels of a network.

    Args:
        source: What `labels` takes, or the names themselves in class order.
        classes: Number of classes of the network.

    Raises:
        ConfigError: See `labels`; or there are not as many names as classes.
    """
    if isinstance(source, (str, Path)):
        found, giver = labels(source), str(source)
    else:
        giver = f"The {type(source).__name__} of labels"
        found = _all_different(_names(source), giver)
    if len(found) != classes:
        count = f"{len(found)} class{'es' * (len(found) != 1)}"
        raise ConfigError(
            f"{giver} names {count}, the network has {classes}.",
            "Give the names of its classes; for another number of classes export it again.",
        )
    return found


def _names(given: object) -> tuple[str, ...]:
    if isinstance(given, Sequence) and all(isinstance(name, str) and name for name in given):
        return tuple(given)
    raise ConfigError(
        f"Labels were asked for and {given!r:.60} found.",
        "Give imagenet-1k, a file, or the names themselves in class order.",
    )


def _read_pairs(file: Path) -> list[tuple[str | None, str]]:
    unreadable = OSError, UnicodeDecodeError
    with raised_as(ConfigError, f"The class names {file} cannot be read", _FORMS, unreadable):
        text = read_bounded(file).decode("utf-8-sig")
    wrong = ValueError, TypeError, LookupError
    with raised_as(ConfigError, f"{file} does not give names of classes", _FORMS, wrong):
        is_json = text.lstrip()[:1] in ("{", "[")
        pairs = pairs_of_json(parse_json(text, str(file))) if is_json else _of_text(text)
    if not pairs:
        raise ConfigError(f"{file} names no class.", _FORMS)
    return pairs


def pairs_of_json(document: Any) -> list[tuple[str | None, str]]:
    """Find the ids and names of classes in a JSON document; the id is None without one.

    Raises:
        LookupError, TypeError, ValueError: It is of no form that `labels` lists.
    """
    if isinstance(document, Mapping):
        # Keras has the id and the name behind the number.
        pairs = [tuple(v) if isinstance(v, list) else (k, v) for k, v in document.items()]
    else:
        pairs = [
            (None, entry) if isinstance(entry, str) else (_id(entry), entry["name"])
            for entry in document
        ]
    for key, name in pairs:
        if not (isinstance(key, str | None) and isinstance(name, str)):
            raise TypeError(f"{name!r} is not the name of a class")
    return [(key, name.strip()) for key, name in pairs]


def _id(entry: Mapping[str, Any]) -> Any:
    for key in _ID_KEYS:
        if key in entry:
            return entry[key]
    raise LookupError(f"an entry has neither {' nor '.join(_ID_KEYS)}")


def _of_text(text: str) -> list[tuple[str | None, str]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = [line.split(maxsplit=1) for line in lines]
    if all(len(pair) == 2 and _WORDNET_ID.fullmatch(pair[0]) for pair in words):
        return [(pair[0], pair[1].strip()) for pair in words]
    return [(None, line) for line in lines]


def _in_class_order(
    pairs: list[tuple[str | None, str]], source: str
) -> list[tuple[str | None, str]]:
    """Sort pairs by numbers or WordNet ids, if all have such; else their order stays."""
    if all(key is not None and key.isdecimal() for key, _ in pairs):
        numbered = sorted(pairs, key=lambda pair: int(pair[0] or 0))
        if [int(key or 0) for key, _ in numbered] != list(range(len(pairs))):
            raise ConfigError(f"The numbers in {source} do not count the classes from 0.", _FORMS)
        return numbered
    ids = [key for key, _ in pairs if key is not None and _WORDNET_ID.fullmatch(key)]
    if len(ids) < len(pairs):
        return pairs
    if len(set(ids)) < len(ids):
        raise ConfigError(f"{source} has one id more than once.", "Keep one line of each.")
    return sorted(pairs, key=lambda pair: str(pair[0]))
