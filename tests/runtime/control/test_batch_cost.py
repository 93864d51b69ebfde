from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.runtime.control.batch_cost import BatchCost


def learned(run_ms, picture_ms, sizes, noise=0.0) -> BatchCost:
    cost = BatchCost()
    generator = np.random.default_rng(0)
    for size in (1, *sizes):
        ms = run_ms + picture_ms * size
        cost.add(size, ms * (1 + noise * generator.normal()))
    return cost


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_share_that_a_full_batch_saves(noise) -> None:
    cost = learned(6.0, 2.0, [1, 2, 3, 4, 8] * 20, noise)
    assert cost.saved(1, 8) == pytest.approx(1 - 2.75 / 8, abs=0.05 if noise else 1e-9)
    assert cost.saved(4, 8) == pytest.approx(1 - 2.75 / 3.5, abs=0.05 if noise else 1e-9)
    assert cost.saved(8, 8) == pytest.approx(0, abs=1e-9)


def test_nothing_is_saved_where_every_picture_costs_the_same() -> None:
    assert learned(0.0, 5.0, [1, 2, 4]).saved(1, 8) == pytest.approx(0, abs=1e-9)
    assert learned(-3.0, 5.0, [1, 2, 4]).saved(1, 8) == 0


def test_batches_of_one_cost_save_all_but_their_share() -> None:
    assert learned(7.0, 0.0, [1, 2, 4]).saved(1, 4) == pytest.approx(0.75)


@pytest.mark.parametrize("sizes", [[], [8], [8] * 50])
def test_too_few_sizes_tell_nothing(sizes) -> None:
    assert learned(6.0, 2.0, sizes).saved(1, 8) is None


def test_the_first_run_does_not_count() -> None:
    cost = BatchCost()
    cost.add(1, 9000.0)
    for size in (2, 4):
        cost.add(size, 6.0 + 2.0 * size)
    assert cost.saved(1, 8) == pytest.approx(1 - 2.75 / 8)


def test_a_machine_that_changes_is_followed() -> None:
    cost = learned(20.0, 2.0, [1, 2, 4, 8] * 40)
    for size in [1, 2, 4, 8] * 60:
        cost.add(size, 4.0 * size)
    saved = cost.saved(1, 8)
    assert saved is not None
    assert saved < 0.05
