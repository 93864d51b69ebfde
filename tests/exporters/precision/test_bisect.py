from __future__ import annotations

import dataclasses

import pytest

from sacvit_deploy.comparison.decisions import LIMITS
from sacvit_deploy.exporters.precision import PrecisionRequest, add_precision
from sacvit_deploy.exporters.precision.bisect import bisect_precision, smallest
from sacvit_deploy.exporters.precision.request import read_keep
from tests.exporters.precision.conftest import copy_of


def test_the_bisection_finds_what_was_planted(large_activation, tmp_path):
    found = bisect_precision(large_activation, PrecisionRequest("fp16"))
    assert 0 < len(found.keep) < 40
    assert set(found.where) <= {"blocks.1.mlp.fc1", "blocks.1.mlp.fc2"}
    assert {name.partition(":")[0] for name in found.keep} == {"early_exit", "refine"}
    assert LIMITS["fp16"].hold(dataclasses.replace(found.agreement, exit_flip_rate=0))
    file = tmp_path / "keep.txt"
    file.write_text(found.text())
    assert read_keep([str(file)]) == found.keep
    request = PrecisionRequest("fp16", keep=read_keep([str(file)]))
    copy = add_precision(copy_of(large_activation, tmp_path / "kept"), request)
    kept = copy.manifest.precisions["fp16"].kept_in_fp32
    assert sum(map(len, kept.values())) == len(found.keep)
    assert copy.manifest.precisions["fp16"].agreement.images == found.agreement.images


def test_what_is_fine_needs_nothing(sac_host):
    found = bisect_precision(sac_host, PrecisionRequest("fp16"))
    assert found.keep == ()
    assert found.trials == 1
    assert found.text() == ""


@pytest.mark.parametrize(
    "needed", [{3}, {0}, {99}, {7, 8}, {0, 99}, {10, 40, 77}, set(range(100))], ids=str
)
def test_the_search_finds_exactly_what_is_needed(needed: set[int]):
    tests: list[list[int]] = []

    def enough(items: list[int]) -> bool:
        tests.append(items)
        return needed <= set(items)

    assert smallest(range(100), enough) == sorted(needed)
    if len(needed) <= 3:
        assert len(tests) <= 2 + 16 * len(needed)


def test_one_of_two_alternatives_is_enough():
    def enough(items: list[int]) -> bool:
        return 3 in items or {1, 2} <= set(items)

    assert smallest(range(8), enough) in ([3], [1, 2])
