from __future__ import annotations

import pytest
import torch

from sacvit_deploy.errors import DataError
from sacvit_deploy.training.data import BatchPlan, epoch_order
from sacvit_deploy.training.run import Processes

CPU = torch.device("cpu")


def plan(parts: int = 1, count: int = 1, rank: int = 0) -> BatchPlan:
    return BatchPlan(50, 12, parts, Processes(count, rank, CPU), seed=0)


def test_full_batches_in_the_order_of_the_epoch():
    assert plan().steps_per_epoch == 4
    parts = list(plan().parts_from(4))
    assert len(parts) == 4
    taken = [key.picture for part in parts for key in part]
    assert taken == epoch_order(0, 1, 50)[:48].tolist()
    assert {key.epoch for part in parts for key in part} == {1}


@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_later_start_gives_the_same_rest(step):
    assert list(plan().parts_from(step)) == list(plan().parts_from(0))[step:]


@pytest.mark.parametrize(("parts", "count"), [(1, 2), (2, 2), (3, 1), (2, 3)])
def test_processes_and_parts_share_a_step(parts, count):
    """However a step is divided, it holds the same pictures, none twice."""
    whole = {key.picture for key in next(plan().parts_from(0))}
    shares = []
    for rank in range(count):
        own = list(plan(parts, count, rank).parts_from(0))[:parts]
        assert len({len(part) for part in own}) == 1
        shares += [key.picture for part in own for key in part]
    assert len(shares) == 12
    assert set(shares) == whole


def test_a_batch_larger_than_the_data():
    with pytest.raises(DataError, match="has 5 pictures, a step takes 12"):
        BatchPlan(5, 12, 1, Processes(1, 0, CPU), seed=0)


def test_a_batch_that_cannot_be_divided():
    with pytest.raises(DataError, match="cannot be divided among 5 processes"):
        plan(count=5)
