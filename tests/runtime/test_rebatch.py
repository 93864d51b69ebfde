from __future__ import annotations

import pytest

from sacvit_deploy.runtime.rebatch import Rebatcher, Waiting, Workers
from sacvit_deploy.runtime.scheduler import FixedExit, Scheduler
from sacvit_deploy.spec import IMAGE
from tests.fakes import CF, SAC, fake_sessions, random_images
from tests.runtime.outcomes import ETA, same


@pytest.fixture(params=[(SAC, "host"), (SAC, "graph"), (CF, "host"), (CF, "graph")], ids=str)
def network(request):
    return request.param


@pytest.fixture(params=[1, 3], ids="{} workers".format)
def workers(request):
    made = Workers(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("max_waiting", [1, 5, 1000])
@pytest.mark.parametrize("refine_batch", [1, 3, 50])
def test_rebatching_changes_no_outcome(network, workers, refine_batch, max_waiting) -> None:
    config, selection = network
    sessions = fake_sessions(config, selection)
    scheduler = Scheduler(config, sessions, selection)
    images = random_images(21)
    wanted = scheduler.run(images, FixedExit(ETA))
    sessions["refine"].calls.clear()
    waiting = Waiting(refine_batch, max_waiting)
    rebatcher = Rebatcher(scheduler, FixedExit(ETA), waiting, workers)
    found = []
    for start in range(0, 21, 4):
        found += rebatcher.push(images[start : start + 4])
        at_work = 4 * 2 * workers.ahead  # batches in the first stage, and as many refined
        assert min(start + 4, 21) - len(found) <= max_waiting + at_work
    found += rebatcher.finish()
    assert [slot for slot, _ in found] == list(range(21))
    same([outcome for _, outcome in found], wanted)
    assert max(len(feeds[IMAGE]) for feeds in sessions["refine"].calls) <= refine_batch


def test_rebatching_fills_the_second_stage() -> None:
    sessions = fake_sessions(SAC)
    scheduler = Scheduler(SAC, sessions, clock=lambda: 0.0)
    rebatcher = Rebatcher(scheduler, FixedExit(ETA), Waiting(4, 1000))
    images = random_images(32)
    ready = [outcome for row in images for outcome in rebatcher.push(row[None])]
    sizes = [len(feeds[IMAGE]) for feeds in sessions["refine"].calls]
    assert len(sizes) > 1
    assert set(sizes) == {4}
    assert len(ready) + len(rebatcher.finish()) == 32
    assert rebatcher.finish() == []
