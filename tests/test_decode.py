from __future__ import annotations

import dataclasses
import json
import math
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from sacvit_deploy.decode import (
    OPTIONAL,
    check_field,
    check_types,
    decode,
    encode,
    parse_json,
    read_bounded,
    shown,
)
from sacvit_deploy.errors import ConfigError


@dataclass(frozen=True)
class Part:
    kind: Literal["small", "large", 2]
    size: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class Whole:
    name: str
    weight: float
    parts: tuple[Part, ...]
    by_name: dict[str, Part] = field(default_factory=dict)
    folder: Path = Path("here")
    other: Path | None = None
    shape: tuple[int | str, ...] = ()
    first: Part | None = None
    is_new: bool = False
    anything: dict[str, Any] = field(default_factory=dict)
    note: str | None = field(default=None, metadata=OPTIONAL)
    strength: dict[str, float] | float = 0.5


CHOICES = "one of 'small', 'large', 2"
PLAIN: dict[str, Any] = {
    "name": "Käfer",
    "weight": 3,
    "parts": [{"kind": "small", "size": [3, 4]}, {"kind": 2}],
    "by_name": {"a": {"kind": "large"}},
    "folder": "there",
    "shape": ["batch", 3],
    "first": {"kind": "small"},
    "is_new": True,
    "anything": {"a": [1, None, {"b": 0.5}]},
}
WHOLE = Whole(
    "Käfer",
    3.0,
    (Part("small", (3, 4)), Part(2)),
    {"a": Part("large")},
    Path("there"),
    shape=("batch", 3),
    first=Part("small"),
    is_new=True,
    anything={"a": [1, None, {"b": 0.5}]},
)


def test_plain_data_becomes_a_dataclass():
    found = decode(Whole, PLAIN)
    assert found == WHOLE
    assert isinstance(found.weight, float)


def test_what_is_encoded_is_decoded_again():
    plain = encode(WHOLE)
    assert plain == json.loads(json.dumps(plain))
    assert plain["folder"] == "there"
    assert decode(Whole, plain) == WHOLE
    assert list(plain) == [f.name for f in dataclasses.fields(Whole) if f.name != "note"]


def test_what_is_optional_is_left_out_where_it_is_none():
    assert "note" not in encode(WHOLE)
    assert encode(WHOLE)["other"] is None
    noted = dataclasses.replace(WHOLE, note="new")
    assert encode(noted)["note"] == "new"
    assert decode(Whole, encode(noted)) == noted


@pytest.mark.parametrize("strength", [0.25, 1, {}, {"a": 1.0}])
def test_the_first_fitting_kind_of_a_union_counts(strength):
    assert decode(Whole, PLAIN | {"strength": strength}).strength == strength


def test_parts_that_are_built_stay_as_they_are():
    part = Part("large")
    found = decode(Whole, {"name": "", "weight": 0.5, "parts": (part,), "folder": Path("x")})
    assert found.parts[0] is part
    assert found.folder == Path("x")
    assert decode(Part, part) is part


def test_what_has_a_default_may_be_left_out():
    assert decode(Whole, {"name": "", "weight": 1, "parts": []}) == Whole("", 1.0, ())


@pytest.mark.parametrize(
    ("change", "problem", "fix"),
    [
        ({"name": 3}, "name is 3.", "a string"),
        ({"name": None}, "name is None.", "a string"),
        ({"weight": "3"}, "weight is '3'.", "a finite number"),
        ({"weight": True}, "weight is True.", "a finite number"),
        ({"weight": math.nan}, "weight is nan.", "a finite number"),
        ({"weight": -math.inf}, "weight is -inf.", "a finite number"),
        ({"weight": None}, "weight is None.", "a finite number"),
        ({"parts": {}}, "parts is {}.", "a list"),
        ({"parts": "ab"}, "parts is 'ab'.", "a list"),
        ({"parts": [3]}, "parts[0] is 3.", "a mapping of names to values"),
        ({"parts": [PLAIN["first"], {"kind": "huge"}]}, "parts[1].kind is 'huge'.", CHOICES),
        ({"parts": [{"kind": 2.0}]}, "parts[0].kind is 2.0.", CHOICES),
        ({"parts": [{"kind": ["small"]}]}, "parts[0].kind is ['small'].", CHOICES),
        ({"parts": [{"kind": 2, "size": [1]}]}, "parts[0].size is [1].", "a list of 2"),
        ({"first": {"kind": 2, "size": [True, 1]}}, "first.size[0] is True.", "a whole number"),
        ({"shape": [1, 2.0]}, "shape[1] is 2.0.", "a whole number or a string"),
        ({"by_name": []}, "by_name is [].", "a mapping of names to values"),
        ({"by_name": {"a": {"kind": 3}}}, "by_name['a'].kind is 3.", CHOICES),
        ({"by_name": {1: {"kind": 2}}}, "a name in by_name is 1.", "a string"),
        ({"folder": 3}, "folder is 3.", "a path"),
        ({"other": 3}, "other is 3.", "a path"),
        ({"shape": [None]}, "shape[0] is None.", "a whole number or a string"),
        ({"shape": [True]}, "shape[0] is True.", "a whole number or a string"),
        ({"first": 3}, "first is 3.", "a mapping of names to values"),
        ({"note": 1}, "note is 1.", "a string"),
        ({"strength": "a"}, "strength is 'a'.", "a mapping of names to values or a finite number"),
        ({"is_new": 1}, "is_new is 1.", "true or false"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(change, problem, fix):
    with pytest.raises(ConfigError) as refused:
        decode(Whole, PLAIN | change)
    assert (refused.value.problem, refused.value.fix) == (problem, f"Make it {fix}.")


def test_numbers_beyond_floats_are_refused():
    with pytest.raises(ConfigError, match=r"weight is 1000+\.\.\.0+\."):
        decode(Whole, PLAIN | {"weight": 10**400})


@pytest.mark.parametrize("missing", ["name", "weight", "parts"])
def test_what_is_missing_is_named(missing):
    values = {key: value for key, value in PLAIN.items() if key != missing}
    with pytest.raises(ConfigError, match=rf"^{missing} is missing\."):
        decode(Whole, values)
    with pytest.raises(ConfigError, match=r"^parts\[0\]\.kind is missing\."):
        decode(Whole, PLAIN | {"parts": [{}]})


def test_places_begin_where_the_caller_says():
    with pytest.raises(ConfigError, match=r"^config\.kind is missing\."):
        decode(Part, {}, "config")
    with pytest.raises(ConfigError, match=r"^the top level is \[\]\."):
        decode(Part, [])


def test_unknown_names_are_ignored_or_refused():
    values = PLAIN | {"parts": [{"kind": 2, "mood": "fair"}], "colour": "red"}
    assert decode(Whole, values).parts == (Part(2),)
    with pytest.raises(ConfigError, match=r"Unknown field: colour\.\nKnown fields: name, weight"):
        decode(Whole, values, refuse_unknown=True)
    del values["colour"]
    with pytest.raises(ConfigError, match=r"Unknown field: parts\[0\].mood"):
        decode(Whole, values, refuse_unknown=True)


def test_what_is_shown_of_a_value_is_short():
    with pytest.raises(ConfigError) as refused:
        decode(Whole, PLAIN | {"name": ["x" * 10_000] * 10_000})
    assert len(refused.value.problem) < 500


@pytest.mark.parametrize(
    "change", [{"size": [1, 2]}, {"size": (1, 2.5)}, {"size": (1,)}, {"kind": "huge"}, {"size": 1}]
)
def test_a_dataclass_can_check_its_own_types(change):
    check_types(Part("small"))
    (name,) = change
    with pytest.raises(ConfigError, match=f"^{name}"):
        check_types(dataclasses.replace(Part("small"), **change))


def test_an_int_is_left_where_a_float_is_meant():
    whole = Whole("", 3, ())
    check_types(whole)
    assert isinstance(whole.weight, int)


def test_a_field_is_checked():
    check_field(True, "depth", 3, "1 or more")
    with pytest.raises(ConfigError, match=r"depth is 0\.\nMake it 1 or more\."):
        check_field(False, "depth", 0, "1 or more")


def test_json_within_bounds_is_read():
    text = '{"a": [1, -2.5e3, "Käfer \\ud83d\\ude00", null, true], "b": 18446744073709551615}'
    assert parse_json(text, "It") == parse_json(text.encode(), "It") == json.loads(text)
    deep = "[" * 64 + "]" * 64
    assert parse_json(deep, "It") == json.loads(deep)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("NaN", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("1e999", "a number is too large"),
        ("-1e999", "a number is too large"),
        ("1" * 21, "more than 20 digits"),
        ("-" + "1" * 5000, "more than 20 digits"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested deeper than 64 levels"),
        ("[" * 1_000_000, "not valid JSON"),
        ('"\\ud800"', "half a surrogate pair"),
        ('{"\\udfff": 1}', "half a surrogate pair"),
        ('["\ud800"]', "surrogate"),
        (b"\xff\xfe", "not valid JSON"),
        ('{"a": 1', "not valid JSON"),
        ("", "not valid JSON"),
        (b" " * (32 << 20) + b"1", "33554433 bytes; at most 33554432 are read"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_json_out_of_bounds_is_refused(text, says):
    with pytest.raises(ConfigError, match=says) as refused:
        parse_json(text, "It")
    assert refused.value.problem.startswith("It ")
    assert len(str(refused.value)) < 2000


def test_a_huge_file_is_refused_by_its_size(tmp_path):
    file = tmp_path / "sparse.json"
    with file.open("wb") as stream:
        stream.truncate(64 << 30)
    tracemalloc.start()
    with pytest.raises(ConfigError, match=r"sparse\.json has 68719476736 bytes; at most"):
        read_bounded(file)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    file.write_bytes(b"{}")
    assert read_bounded(file) == b"{}"


@pytest.mark.parametrize(
    "value", [10**5000, "x" * 10**6, [["x"] * 1000] * 1000, {"a" * 999: 1}], ids=type
)
def test_a_value_is_shown_in_few_characters(value):
    assert 0 < len(shown(value)) < 500
    with pytest.raises(ConfigError):
        check_field(False, "depth", value, "1 or more")
