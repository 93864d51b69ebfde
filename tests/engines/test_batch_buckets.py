from __future__ import annotations

import pytest

from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.engines.tensorrt_engine import BatchBuckets
from sacvit_deploy.errors import EngineError


@pytest.mark.parametrize(
    ("ends", "chosen", "recorded"),
    [
        ((1, 32), None, (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)),
        ((1, 1), None, (1,)),
        ((4, 10), None, (4, 6, 8, 10)),
        ((1, 32), (1, 8, 64), (1, 8, 32)),
        ((2, 8), (1, 4), (2, 4, 8)),
    ],
)
def test_buckets_lie_within_the_range_and_reach_its_ends(ends, chosen, recorded) -> None:
    assert BatchBuckets.of_range(ends[0], ends[1], chosen).recorded == recorded


@pytest.mark.parametrize("largest", [1, 5, 32, 100])
def test_a_batch_is_padded_to_the_next_bucket_and_by_less_than_a_third(largest) -> None:
    buckets = BatchBuckets.of_range(1, largest)
    for size in range(1, largest + 1):
        padded = buckets.padded(size)
        assert size <= padded <= largest
        assert padded in buckets.recorded
        assert (padded - size) * 3 < padded


def test_without_buckets_only_too_small_a_batch_is_padded() -> None:
    assert [BatchBuckets(4, 16).padded(size) for size in (1, 4, 7, 16)] == [4, 4, 7, 16]


@pytest.mark.parametrize("buckets", [BatchBuckets(2, 8), BatchBuckets.of_range(2, 8)])
def test_too_large_a_batch_names_the_range_and_the_command(buckets) -> None:
    with pytest.raises(EngineError, match=r"of 9 .* takes 2 to 8\.\n.*build-engine .* 2:8:9"):
        buckets.padded(9)


@pytest.mark.parametrize("buckets", [(), (0, 1), (4, 2), (2, 2)])
def test_chosen_buckets_are_checked(buckets) -> None:
    with pytest.raises(EngineError, match="batch buckets"):
        SessionOptions(batch_buckets=buckets)
