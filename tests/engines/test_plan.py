from __future__ import annotations

import os
import signal
import threading

import pytest

from sacvit_deploy.engines.plan import Progress, cancelled_by_ctrl_c
from sacvit_deploy.engines.tensorrt_library import BuildLog


def walk(progress: Progress) -> None:
    """Two steps; in the place of the first, a phase of four."""
    progress.start("all", None, 2)
    progress.start("inner", "all", 4)
    progress.step("inner", 0)
    progress.step("inner", 1)
    progress.finish("inner")
    progress.step("all", 0)
    progress.step("all", 1)
    progress.finish("all")


def test_a_phase_inside_is_part_of_a_step():
    told: list[tuple[float, str]] = []
    walk(Progress(lambda share, phase: told.append((share, phase))))
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
    progress = Progress(lambda share, _: told.append(share))
    walk(progress)
    walk(progress)  # a library may well announce the same phases again
    progress.step("never announced", 3)
    progress.start("empty", None, 0)
    progress.step("empty", 5)
    assert told == sorted(told)
    assert max(told) == 1


def test_what_a_listener_raises_is_kept():
    def fail(*_):
        raise ValueError("no")

    progress = Progress(fail)
    progress.start("all", None, 1)
    assert isinstance(progress.failure, ValueError)


def test_errors_are_found_among_the_lines():
    log = BuildLog([("INFO", "a"), ("ERROR", "b"), ("WARNING", "c"), ("INTERNAL_ERROR", "d")])
    assert log.errors == ["b", "d"]
    assert log.text.splitlines()[1] == "[ERROR] b"


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
