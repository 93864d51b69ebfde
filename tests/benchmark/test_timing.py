"""Turns, clocks and sums, on sessions that take a known time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from sacvit_deploy.benchmark.timing import (
    CallTime,
    Effort,
    TimedNetwork,
    in_turn,
    summarize,
    timed_session,
)
from sacvit_deploy.engines.session import DeviceSession
from tests.fakes import DENSE, SAC, FakeSession, fake_sessions, random_images

if TYPE_CHECKING:
    from sacvit_deploy.spec import Role


class Clock:
    """Time that passes only when something takes it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowSession(FakeSession):
    def __init__(self, role, config, clock, seconds) -> None:
        super().__init__(config, role)
        self.clock, self.seconds = clock, seconds

    def run(self, feeds):
        self.clock.now += self.seconds
        return super().run(feeds)


class SlowClock(Clock):
    """Each look at it takes a thousandth of a second."""

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def test_time_is_told_apart_by_graph() -> None:
    clock = Clock()
    seconds: dict[Role, float] = {"early_exit": 0.003, "refine": 0.007}
    sessions = {role: SlowSession(role, SAC, clock, s) for role, s in seconds.items()}
    network = TimedNetwork(SAC, sessions, clock=clock)
    call = network.run(random_images(4), 1.0)
    assert call.refined == 4
    assert call.graph_ms == pytest.approx({"early_exit": 3, "refine": 7})
    assert call.total_ms == pytest.approx(10)
    assert call.overhead_ms == pytest.approx(0)
    early = network.run(random_images(4), 0.0)
    assert early.graph_ms == pytest.approx({"early_exit": 3})
    assert early.refined == 0


def test_what_the_scheduler_takes_is_overhead() -> None:
    call = TimedNetwork(SAC, fake_sessions(SAC), clock=SlowClock()).run(random_images(2), 1.0)
    # Two looks around each session, of which one is counted for it, and the scheduler's own.
    assert call.graph_ms == pytest.approx({"early_exit": 1, "refine": 1})
    assert call.overhead_ms == pytest.approx(call.total_ms - 2)
    assert call.overhead_ms > 2


def test_a_network_of_one_stage() -> None:
    clock = Clock()
    session = SlowSession("single", DENSE, clock, 0.005)
    call = TimedNetwork(DENSE, {"single": session}, clock=clock).run(random_images(3), 1.0)
    assert call.refined == 0
    assert call.graph_ms == pytest.approx({"single": 5})


class OnDevice(FakeSession):
    memory = "cuda:0"

    def run_on_device(self, feeds, keep):
        return {"kept": sorted(keep)}, {}


def test_a_session_with_memory_of_its_own_keeps_it() -> None:
    timed = timed_session(OnDevice(SAC, "early_exit"), Clock())
    assert isinstance(timed, DeviceSession)
    assert timed.memory == "cuda:0"
    assert timed.run_on_device({}, {"b", "a"})[0] == {"kept": ["a", "b"]}
    assert not isinstance(timed_session(FakeSession(SAC, "early_exit"), Clock()), DeviceSession)


def test_networks_take_turns_batch_by_batch() -> None:
    order: list[str] = []
    work = {name: lambda index, name=name: order.append(f"{name}{index}") for name in "ab"}
    found = in_turn(work, 2, Effort(0, least=1), Clock())
    warm_up, measured = order[:4], order[4:]
    assert warm_up == measured == ["a0", "b0", "a1", "b1"]
    assert {name: len(rounds) for name, rounds in found.items()} == {"a": 1, "b": 1}


def test_rounds_go_on_until_the_time_is_up() -> None:
    clock = Clock()

    def second(_: int) -> None:
        clock.now += 1

    assert len(in_turn({"a": second}, 2, Effort(9, least=2), clock)["a"]) == 5
    assert len(in_turn({"a": second}, 2, Effort(0, least=2), clock)["a"]) == 2
    assert len(in_turn({"a": second}, 1, Effort(99, most=7), clock)["a"]) == 7


def test_medians_are_of_rounds_and_percentiles_of_batches() -> None:
    early, late = CallTime(10, {"early_exit": 9}), CallTime(30, {"early_exit": 9, "refine": 19}, 1)
    rounds = [[early, early, early, late]] * 3
    found = summarize(rounds, 1)
    assert found.p50 == 15  # the mean of a round, and not the 10 of most batches
    assert found.p99 == 30
    assert found.overhead_p50 == pytest.approx(1.25)
    assert found.graphs_p50 == {"early_exit": 9, "refine": 19}
    assert (found.refined, found.refined_per_run, found.rounds) == (0.25, 1, 3)


def test_a_network_that_refined_nothing() -> None:
    found = summarize([[CallTime(4, {"early_exit": 3})]], 8)
    assert (found.refined, found.refined_per_run) == (0, 0)
    assert "refine" not in found.graphs_p50
    assert np.isclose(found.overhead_p50, 1)
