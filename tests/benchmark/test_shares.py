"""The share that is refined, imposed on any confidences."""

from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.benchmark.shares import batches_in_round, imposed_etas
from sacvit_deploy.runtime.scheduler import FixedExit, Scheduler
from tests.fakes import CF, SAC, fake_sessions, random_images


def refined(scheduler, batches, etas) -> list[int]:
    return [
        sum(outcome.refined_logits is not None for outcome in scheduler.run(images, FixedExit(eta)))
        for images, eta in zip(batches, etas, strict=True)
    ]


@pytest.mark.parametrize("config", [SAC, CF])
@pytest.mark.parametrize("hard", [0, 1, 3, 8])
def test_a_batch_is_split_anywhere(config, hard) -> None:
    scheduler = Scheduler(config, fake_sessions(config))
    batches = [random_images(8)]
    etas = imposed_etas(scheduler, batches, hard / 8, config.stages.exit_comparison)
    assert refined(scheduler, batches, etas) == [hard]


@pytest.mark.parametrize(("batch", "count"), [(1, 13), (8, 5), (32, 2), (4, 10)])
def test_a_round_comes_close_to_the_share(batch, count) -> None:
    assert batches_in_round(batch, 0.235) == count
    pictures = batch * count
    assert abs(round(0.235 * pictures) / pictures - 0.235) <= 0.01 + 1e-9


def test_shares_that_need_one_batch_only() -> None:
    assert [batches_in_round(1, share) for share in (0.0, 1.0)] == [1, 1]
    assert batches_in_round(4, 0.25) == 1


def test_single_pictures_are_refined_evenly_over_the_round() -> None:
    scheduler = Scheduler(SAC, fake_sessions(SAC))
    batches = [random_images(1, seed=seed) for seed in range(13)]
    counts = refined(scheduler, batches, imposed_etas(scheduler, batches, 0.235, ">"))
    assert sum(counts) == 3
    assert np.diff(np.flatnonzero(counts)).min() >= 4


@pytest.mark.parametrize(("config", "comparison"), [(SAC, ">"), (CF, ">=")])
def test_equal_confidences_stay_together_and_the_share_holds(config, comparison) -> None:
    scheduler = Scheduler(config, fake_sessions(config))
    same = np.repeat(random_images(1), 4, axis=0)
    batches = [same] * 8
    counts = refined(scheduler, batches, imposed_etas(scheduler, batches, 0.25, comparison))
    assert set(counts) == {0, 4}
    assert sum(counts) == 8


def test_some_ties_in_a_batch() -> None:
    scheduler = Scheduler(SAC, fake_sessions(SAC))
    images = random_images(6)
    images[1] = images[2] = images[0]
    batches = [images, images]
    counts = refined(scheduler, batches, imposed_etas(scheduler, batches, 0.5, ">"))
    assert counts == [2, 5]  # three are equal: neither batch can refine 3, and both miss by 1
