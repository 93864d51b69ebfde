from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sacvit_deploy.engines.engine_request import (
    BatchRange,
    EngineRequest,
    parse_compute_capabilities,
)
from sacvit_deploy.errors import EngineError


@pytest.mark.parametrize(
    ("text", "wanted"), [("1:8:32", (1, 8, 32)), ("4:4:4", (4, 4, 4)), ("16", (16, 16, 16))]
)
def test_a_batch_range_is_read(text, wanted):
    assert BatchRange.parse(text).triple == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1:8",
        "0:1:2",
        "8:1:32",
        "1:64:32",
        "1:8:2147483648",
        "a:b:c",
        "1:8:32:64",
        "-1:2:3",
        "²",
    ],
)
def test_a_wrong_batch_range_is_refused(text):
    with pytest.raises(EngineError, match=r"MIN:OPT:MAX"):
        BatchRange.parse(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("86,89,120", ("8.6", "8.9", "12.0")),
        ("8.6, 12.0", ("8.6", "12.0")),
        ("89,8.9", ("8.9",)),
    ],
)
def test_compute_capabilities_are_read(text, wanted):
    assert parse_compute_capabilities(text) == wanted


@pytest.mark.parametrize("text", ["", "8", "sm86", "86,,89", "8.65", "1234"])
def test_a_wrong_compute_capability_is_refused(text):
    with pytest.raises(EngineError, match="cannot be read"):
        parse_compute_capabilities(text)


@pytest.mark.parametrize(
    "field",
    [
        {"workspace_mib": 0},
        {"workspace_mib": 99999999999999},
        {"optimization_level": 6},
        {"optimization_level": -1},
        {"hardware_compatibility": "all"},
    ],
)
def test_options_out_of_range_are_refused(field):
    with pytest.raises(EngineError):
        EngineRequest("fp32", "tensorrt", **field)


def test_what_only_tensorrt_has_is_listed():
    common = EngineRequest("fp32", "tensorrt", workspace_mib=1, optimization_level=0)
    assert common.only_tensorrt == []
    request = dataclasses.replace(common, timing_cache=Path("x"), version_compatible=True)
    assert request.only_tensorrt == ["--timing-cache", "--version-compatible"]


@pytest.mark.parametrize(
    ("batch", "best"), [((1, 8, 32), 2), ((1, 30, 32), 8), ((1, 1, 8), 1), ((4, 8, 32), 4)]
)
def test_the_second_stage_is_made_for_a_quarter_and_takes_all(batch, best):
    assert BatchRange(*batch).survivors == BatchRange(batch[0], best, batch[2])
