"""What crosses between host and device when both stages compute on one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pytest

from sacvit_deploy.engines.session import Rows, check_feeds
from sacvit_deploy.errors import EngineError
from sacvit_deploy.runtime.rebatch import Rebatcher, Waiting
from sacvit_deploy.runtime.scheduler import FixedExit, Scheduler
from sacvit_deploy.spec import (
    FINE_INDEX,
    IMAGE,
    LOGITS,
    NON_TARGET_INDEX,
    SCORE,
    TARGET_INDEX,
)
from tests.fakes import CF, SAC, FakeSession, fake_sessions, random_images
from tests.runtime.outcomes import ETA, same


@dataclass(frozen=True)
class OnDevice:
    value: np.ndarray
    memory: str

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.value.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape


class FakeDeviceSession(FakeSession):
    """Computes on a device of that name; `crossed` has every (name, direction, rows)."""

    def __init__(self, config, role, selection="graph", memory: str | None = "there") -> None:
        super().__init__(config, role, selection)
        self.memory = memory
        self.crossed: list[tuple[str, str, int]] = []

    def run(self, feeds):
        return self.run_on_device(feeds, ())[0]

    def run_on_device(self, feeds, keep):
        check_feeds(feeds, self.inputs)
        arrays = {}
        for name, feed in feeds.items():
            handle = feed.tensor if isinstance(feed, Rows) else feed
            if isinstance(handle, OnDevice):
                assert handle.memory == self.memory
                rows = feed.numbers if isinstance(feed, Rows) else slice(None)
                arrays[name] = handle.value[rows]
            else:
                self.crossed.append((name, "in", len(feed)))
                arrays[name] = feed
        outputs = super().run(arrays)
        fetched = {name: array for name, array in outputs.items() if name not in keep}
        self.crossed += [(name, "out", len(array)) for name, array in fetched.items()]
        both = arrays | outputs
        return fetched, {name: OnDevice(both[name], str(self.memory)) for name in keep}


def pair(config=SAC, selection="graph", memories=("there", "there")):
    roles = ("early_exit", "refine")
    return {
        role: FakeDeviceSession(config, role, selection, memory)
        for role, memory in zip(roles, memories, strict=True)
    }


@pytest.mark.parametrize("selection", ["host", "graph"])
@pytest.mark.parametrize("config", [SAC, CF], ids=["sac", "cf"])
@pytest.mark.parametrize("eta", [0.0, ETA, 1.0])
def test_on_a_device_and_on_the_host_is_the_same(config, eta, selection) -> None:
    images = random_images(9)
    found = Scheduler(config, pair(config, selection), selection).run(images, FixedExit(eta))
    on_host = Scheduler(config, fake_sessions(config, selection), selection)
    same(found, on_host.run(images, FixedExit(eta)))


def test_only_images_and_answers_cross() -> None:
    sessions = pair()
    outcomes = Scheduler(SAC, sessions, "graph").run(random_images(9), FixedExit(ETA))
    refined = sum(outcome.target_index is not None for outcome in outcomes)
    assert 0 < refined < 9
    assert sessions["early_exit"].crossed == [(IMAGE, "in", 9), (LOGITS, "out", 9)]
    assert sessions["refine"].crossed == [
        (LOGITS, "out", refined),
        (TARGET_INDEX, "out", refined),
    ]


def test_where_the_host_selects_scores_and_indices_cross_too() -> None:
    sessions = pair(selection="host")
    outcomes = Scheduler(SAC, sessions, "host").run(random_images(9), FixedExit(ETA))
    refined = sum(outcome.target_index is not None for outcome in outcomes)
    assert sessions["early_exit"].crossed == [
        (IMAGE, "in", 9),
        (LOGITS, "out", 9),
        (SCORE, "out", 9),
    ]
    assert set(sessions["refine"].crossed) == {
        (TARGET_INDEX, "in", refined),
        (NON_TARGET_INDEX, "in", refined),
        (FINE_INDEX, "in", refined),
        (LOGITS, "out", refined),
    }


def test_both_stages_are_timed() -> None:
    ticks = count()
    scheduler = Scheduler(SAC, pair(), "graph", clock=lambda: float(next(ticks)))
    outcomes = scheduler.run(random_images(4), FixedExit(1.0))
    assert {(outcome.early_ms, outcome.refine_ms) for outcome in outcomes} == {(250.0, 250.0)}
    assert {outcome.refine_ms for outcome in scheduler.run(random_images(4), FixedExit(0.0))} == {
        0.0
    }


def test_where_all_leave_the_second_stage_is_not_touched() -> None:
    sessions = pair()
    Scheduler(SAC, sessions, "graph").run(random_images(3), FixedExit(0.0))
    assert sessions["refine"].crossed == []


@pytest.mark.parametrize(
    "memories", [("here", "there"), (None, None)], ids=["two devices", "no device"]
)
@pytest.mark.parametrize("selection", ["host", "graph"])
def test_elsewhere_the_host_hands_over(selection, memories) -> None:
    sessions = pair(SAC, selection, memories)
    images = random_images(9)
    found = Scheduler(SAC, sessions, selection).run(images, FixedExit(ETA))
    same(
        found, Scheduler(SAC, fake_sessions(SAC, selection), selection).run(images, FixedExit(ETA))
    )
    assert ("coarse_features", "out", 9) in sessions["early_exit"].crossed


def test_a_stream_waits_on_the_host_with_the_same_outcome() -> None:
    sessions = pair()
    scheduler = Scheduler(SAC, sessions, "graph")
    images = random_images(12)
    rebatcher = Rebatcher(scheduler, FixedExit(ETA), Waiting(3, 6))
    done = [each for start in (0, 4, 8) for each in rebatcher.push(images[start : start + 4])]
    found = [outcome for _, outcome in done + rebatcher.finish()]
    assert ("coarse_features", "out", 4) in sessions["early_exit"].crossed
    same(found, Scheduler(SAC, fake_sessions(SAC, "graph"), "graph").run(images, FixedExit(ETA)))


@pytest.mark.parametrize("role", ["early_exit", "refine"])
def test_logits_that_are_not_finite_are_refused(role) -> None:
    sessions = pair()
    compute = FakeSession.run

    def broken(self, feeds):
        outputs = compute(self, feeds)
        if self.role == role:
            outputs[LOGITS][0, 0] = np.nan
        return outputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeSession, "run", broken)
        with pytest.raises(EngineError, match=f"The {role} graph gave logits"):
            Scheduler(SAC, sessions, "graph").run(random_images(2), FixedExit(1.0))


def test_scores_are_fetched_where_they_are_asked_for() -> None:
    images, policy = random_images(4), FixedExit(1.0)
    scheduler = Scheduler(SAC, pair(), "graph")
    assert {outcome.score is None for outcome in scheduler.run(images, policy)} == {True}
    wanted = Scheduler(SAC, fake_sessions(SAC, "graph"), "graph").run(images, policy)
    found = scheduler.run(images, policy, scores=True)
    same(found, wanted)
    np.testing.assert_array_equal([o.score for o in found], [o.score for o in wanted])
