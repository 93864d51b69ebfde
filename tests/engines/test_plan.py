from __future__ import annotations

import os
import signal
import threading

import pytest

from sacvit_deploy.engines.plan import BuildProgress, cancelled_by_ctrl_c


def telling(on_progress) -> BuildProgress:
    return BuildProgress(on_progress, threading.Event())


def walk(progress: BuildProgress) -> None:
    """Two steps, the first of which is a phase of four."""
    progress.phase_start("all", None, 2)
    progress.phase_start("inner", "all", 4)
    progress.step_complete("inner", 0)
    progress.step_complete("inner", 1)
    progress.phase_finish("inner")
    progress.step_complete("all", 0)
    progress.step_complete("all", 1)
    progress.phase_finish("all")


def test_a_phase_inside_is_part_of_a_step():
    told: list[tuple[float, str]] = []
    walk(telling(lambda share, phase: told.append((share, phase))))
    assert told == [
        (0, "all"),
        (0, "inner"),
        (0.125, "inner"),
        (0.25, "inner"),
        (0.5, "all"),
        (1, "all"),
    ]


def test_the_share_never_falls_nor_passes_one():
    told: list[float] = []
    progress = telling(lambda share, _: told.append(share))
    walk(progress)
    walk(progress)  # a library may well announce the same phases again
    progress.step_complete("never announced", 3)
    progress.phase_start("empty", None, 0)
    progress.step_complete("empty", 5)
    assert told == sorted(told)
    assert max(told) == 1


def test_what_a_listener_raises_is_kept():
    def fail(*_):
        raise ValueError("no")

    progress = telling(fail)
    progress.phase_start("all", None, 1)
    assert isinstance(progress.failure, ValueError)


def test_a_build_is_stopped_by_an_event_and_by_a_failure():
    cancelled = threading.Event()
    progress = BuildProgress(lambda *_: None, cancelled)
    assert progress.step_complete("all", 0)
    cancelled.set()
    assert not progress.step_complete("all", 1)
    failing = telling(lambda *_: 1 / 0)
    assert not failing.step_complete("all", 0)


def test_ctrl_c_waits_for_the_end_of_the_block():
    reached: list[bool] = []

    def work() -> None:
        with cancelled_by_ctrl_c() as cancelled:
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(cancelled.is_set())

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_cannot_be_interrupted():
    events = []

    def work() -> None:
        with cancelled_by_ctrl_c() as cancelled:
            events.append(cancelled.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert events == [False]
