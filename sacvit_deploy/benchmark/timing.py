"""Times of networks that take turns, and of the work between their graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.engines.session import DeviceSession, Session, Tensor
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.runtime.scheduler import FixedExit, Scheduler
from sacvit_deploy.spec import Role, Selection

Clock = Callable[[], float]
Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: Go on until this much time has passed.
        least: Rounds to measure in any case.
        most: Rounds after which to stop.
    """

    seconds: float
    least: int = 3
    most: int = 200


@dataclass(frozen=True)
class CallTime:
    """Time of one batch.

    Attributes:
        total_ms: From the images to the answers.
        graph_ms: Time in the session of each graph that ran.
        refined: Pictures that went through the second stage.
    """

    total_ms: float
    graph_ms: Mapping[Role, float]
    refined: int = 0

    @property
    def overhead_ms(self) -> float:
        """Time outside the sessions: exit, selection, rows taken out and put back."""
        return self.total_ms - sum(self.graph_ms.values())


class TimedSession:
    """A session that adds up the time of its calls."""

    def __init__(self, session: Session, clock: Clock) -> None:
        self.provider = session.provider
        self.close = session.close
        self.calls = 0
        self.seconds = 0.0
        self._session, self._clock = session, clock

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        return self._timed(lambda: self._session.run(feeds))

    def _timed(self, call: Callable[[], Measured]) -> Measured:
        start = self._clock()
        result = call()
        self.seconds += self._clock() - start
        self.calls += 1
        return result


class TimedDeviceSession(TimedSession):
    """The same for a session that can leave tensors on its device."""

    def __init__(self, session: DeviceSession, clock: Clock) -> None:
        super().__init__(session, clock)
        self.memory = session.memory
        self._device_session = session

    def run_on_device(
        self, feeds: Mapping[str, Tensor], keep: Collection[str]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Tensor]]:
        """See `DeviceSession.run_on_device`."""
        return self._timed(lambda: self._device_session.run_on_device(feeds, keep))


def timed_session(session: Session, clock: Clock) -> TimedSession:
    """Wrap a session so that its calls are timed."""
    if isinstance(session, DeviceSession):
        return TimedDeviceSession(session, clock)
    return TimedSession(session, clock)


class TimedNetwork:
    """One network whose batches are timed, graph by graph.

    Attributes:
        scheduler: Runs the batches.
    """

    def __init__(
        self,
        config: ModelConfig,
        sessions: Mapping[Role, Session],
        selection: Selection = "host",
        temperature: float = 1.0,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Wrap the sessions of a network; see `Scheduler`."""
        self._clock = clock
        self._sessions = {role: timed_session(each, clock) for role, each in sessions.items()}
        self.scheduler = Scheduler(config, self._sessions, selection, temperature, clock)

    def run(self, images: NDArray[Any], eta: float) -> CallTime:
        """Time one batch.

        Args:
            images: (B, 3, H, W), as the graphs take them.
            eta: Exit threshold, in [0, 1].
        """
        for session in self._sessions.values():
            session.calls, session.seconds = 0, 0.0
        start = self._clock()
        outcomes = self.scheduler.run(images, FixedExit(eta))
        total = self._clock() - start
        graphs = {r: s.seconds * 1e3 for r, s in self._sessions.items() if s.calls}
        refined = sum(outcome.refined_logits is not None for outcome in outcomes)
        return CallTime(total * 1e3, graphs, refined)


def in_turn(
    work: Mapping[str, Callable[[int], Measured]],
    batches: int,
    effort: Effort,
    clock: Clock = time.perf_counter,
) -> dict[str, list[list[Measured]]]:
    """Measure several pieces of work in turns, so that a change of the machine affects all alike.

    A round gives each of its batches to each piece of work, one after the other. The first
    round warms up and is not kept.

    Args:
        work: Takes the number of a batch, and measures itself.
        batches: Batches in a round.
        effort: How many rounds.
        clock: Current time in seconds.

    Returns:
        By name, the measurements of each round, batch by batch.
    """
    rounds: dict[str, list[list[Measured]]] = {name: [] for name in work}
    _round(work, batches)
    end, done = clock() + effort.seconds, 0
    while done < effort.least or (done < effort.most and clock() < end):
        for name, measured in _round(work, batches).items():
            rounds[name].append(measured)
        done += 1
    return rounds


def _round(
    work: Mapping[str, Callable[[int], Measured]], batches: int
) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {name: [] for name in work}
    for number in range(batches):
        for name, measure in work.items():
            found[name].append(measure(number))
    return found


@dataclass(frozen=True)
class Summary:
    """Times of one network at one batch size, in milliseconds.

    A round has batches with more and with fewer refined pictures. So the median is of rounds, each
    divided by its batches, and the percentiles are of single batches.

    Attributes:
        p50: Median time of a batch.
        p95: 95th percentile.
        p99: 99th percentile.
        overhead_p50: Median time of a batch outside the sessions.
        graphs_p50: Median time of one run of each graph.
        refined: Pictures that were refined, as a share of all.
        refined_per_run: Mean number of pictures in a run of the second stage; 0 without one.
        rounds: Number of rounds.
    """

    p50: float
    p95: float
    p99: float
    overhead_p50: float
    graphs_p50: Mapping[Role, float]
    refined: float
    refined_per_run: float
    rounds: int


def summarize(rounds: Sequence[Sequence[CallTime]], batch: int) -> Summary:
    """Sum up the rounds of one network.

    Args:
        rounds: At least one round of at least one batch.
        batch: Pictures in a batch.
    """
    totals = np.array([[call.total_ms for call in calls] for calls in rounds])
    overheads = np.array([[call.overhead_ms for call in calls] for calls in rounds])
    refined = np.array([[call.refined for call in calls] for calls in rounds])
    runs = np.count_nonzero(refined)
    p95, p99 = np.percentile(totals, [95, 99])
    return Summary(
        p50=float(np.median(totals.mean(1))),
        p95=float(p95),
        p99=float(p99),
        overhead_p50=float(np.median(overheads.mean(1))),
        graphs_p50=_graph_medians(rounds),
        refined=float(refined.mean() / batch),
        refined_per_run=float(refined.sum() / runs) if runs else 0.0,
        rounds=len(rounds),
    )


def _graph_medians(rounds: Sequence[Sequence[CallTime]]) -> dict[Role, float]:
    """Median over rounds of the mean time of a run of each graph."""
    roles = {role: None for calls in rounds for call in calls for role in call.graph_ms}
    means: dict[Role, list[float]] = {role: [] for role in roles}
    for calls in rounds:
        for role, found in means.items():
            times = [call.graph_ms[role] for call in calls if role in call.graph_ms]
            if times:
                found.append(float(np.mean(times)))
    return {role: float(np.median(found)) for role, found in means.items()}
