"""Streams: order, deadlines, and what ends them."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sacvit_deploy.errors import ConfigError, EngineError, ImageError
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.spec import IMAGE
from tests.fakes import SAC, fake_manifest, fake_opened, random_pictures

ETA = 0.19
PICTURES = random_pictures(24)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make(clock: Clock | None = None, workers: int = 1) -> tuple[Pipeline, Any]:
    opened = dataclasses.replace(fake_opened(SAC), workers=workers)
    return Pipeline(fake_manifest(eta=ETA), opened, clock=clock or Clock()), opened.sessions


def batches(sessions: Any, role: str) -> list[int]:
    return [len(feeds[IMAGE]) for feeds in sessions[role].calls]


@pytest.fixture
def files(tmp_path):
    for index, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"{index:02}.png")
    return sorted(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("readers", [None, 0, 3])
def test_files_in_a_stream_equal_a_call_and_single_calls(files, readers, workers) -> None:
    pipeline, _ = make(workers=workers)
    wanted = [pipeline(path) for path in files]
    assert pipeline(files, batch_size=5, readers=readers) == wanted
    assert list(pipeline.stream(files, batch_size=5, readers=readers)) == wanted


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_results_as_they_are_done_are_the_same_ones(batch_size) -> None:
    pipeline, _ = make()
    wanted = pipeline(PICTURES)
    found = list(pipeline.stream(PICTURES, batch_size=batch_size, in_order=False))
    order = [result.index for result in found]
    assert sorted(order, key=int) == list(range(24))  # type: ignore[arg-type]
    assert order != list(range(24))
    assert sorted(found, key=lambda result: int(result.index or 0)) == wanted
    assert [result.index for result in wanted] == [None] * 24


def test_the_index_counts_the_frames_of_the_stream() -> None:
    found = list(make()[0].stream(PICTURES, batch_size=5))
    assert [result.index for result in found] == list(range(24))
    assert found[3].to_dict()["index"] == 3


def test_out_of_order_no_easy_frame_waits_for_a_hard_one() -> None:
    pipeline, _ = make()
    easy = {i for i, result in enumerate(pipeline(PICTURES)) if result.stage == "early_exit"}
    seen: list[int] = []

    def frames():
        for index, picture in enumerate(PICTURES):
            seen.append(index)
            yield picture

    for result in pipeline.stream(frames(), batch_size=1, in_order=False, max_waiting=1000):
        if result.index in easy:
            assert result.index == len(seen) - 1
        else:
            assert result.index is not None
            assert result.index < len(seen)


def test_out_of_order_a_hard_frame_waits_for_no_more_than_it_should() -> None:
    pipeline, sessions = make()
    pictures = [PICTURES[0]] * 40
    hard = pipeline(PICTURES[0], eta=1)
    seen: list[int] = []

    def frames():
        for index, picture in enumerate(pictures):
            seen.append(index)
            yield picture

    stream = pipeline.stream(frames(), eta=1, batch_size=64, max_waiting=5, in_order=False)
    first = next(stream)
    assert first == hard
    assert len(seen) <= 64
    stream.close()
    sessions["refine"].calls.clear()
    for result in pipeline.stream(iter(PICTURES), batch_size=2, max_waiting=4, in_order=False):
        del result
    assert len(batches(sessions, "refine")) > 1


def slow_camera(clock: Clock, ms: float, seen: list[int]):
    for index in itertools.count():
        clock.now_s += ms / 1e3
        seen.append(index)
        yield PICTURES[index % 24]


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("delay_ms", [0, 50, 95])
def test_no_result_is_held_back_beyond_the_deadline(in_order, delay_ms) -> None:
    clock = Clock()
    pipeline, _ = make(clock)
    seen: list[int] = []
    stream = pipeline.stream(
        slow_camera(clock, 10, seen),
        batch_size=32,
        max_waiting=1000,
        max_delay_ms=delay_ms,
        in_order=in_order,
    )
    for result in itertools.islice(stream, 60):
        assert result.index is not None
        taken_s = (result.index + 1) * 10 / 1e3
        assert (clock.now_s - taken_s) * 1e3 <= delay_ms + 10 + 1e-6


def test_without_a_deadline_the_batch_is_filled() -> None:
    clock = Clock()
    pipeline, sessions = make(clock)
    seen: list[int] = []
    next(pipeline.stream(slow_camera(clock, 1000, seen), batch_size=16, eta=0))
    assert len(seen) == 16
    assert batches(sessions, "early_exit") == [16]


def test_hard_frames_are_refined_at_once_where_full_batches_save_nothing(monkeypatch) -> None:
    """The fake second stage takes 10 ms a picture, or 10 ms a run."""
    refined: dict[str, list[int]] = {}
    for cost in ("picture", "run"):
        clock = Clock()
        pipeline, sessions = make(clock)
        compute = sessions["refine"].run

        def run(feeds, compute=compute, clock=clock, cost=cost):
            clock.now_s += 0.01 * (len(feeds[IMAGE]) if cost == "picture" else 1)
            return compute(feeds)

        monkeypatch.setattr(sessions["refine"], "run", run)
        results = list(pipeline.stream(PICTURES * 10, batch_size=8, max_waiting=12))
        assert results == pipeline(PICTURES * 10)
        refined[cost] = batches(sessions, "refine")[:-1]
    assert np.mean(refined["picture"][-40:]) < np.mean(refined["run"]) - 0.5


def test_leaving_a_stream_early_ends_its_threads(files) -> None:
    pipeline, _ = make()

    def running() -> int:
        return sum(t.name.startswith("sacvit-reader") for t in threading.enumerate())

    stream = pipeline.stream(itertools.cycle(files), batch_size=2, readers=3)
    next(stream)
    assert running() > 0
    stream.close()
    assert running() == 0
    with pytest.raises(StopIteration):
        next(stream)


def test_workers_compute_batches_side_by_side(monkeypatch) -> None:
    pipeline, sessions = make(workers=2)
    wanted = pipeline(PICTURES)
    compute, both = sessions["early_exit"].run, threading.Barrier(2)

    def run(feeds):
        both.wait(timeout=30)  # no batch goes on before another one is there, too
        return compute(feeds)

    monkeypatch.setattr(sessions["early_exit"], "run", run)
    assert list(pipeline.stream(PICTURES, batch_size=4)) == wanted


@pytest.mark.parametrize("in_order", [True, False])
def test_workers_hold_back_a_bounded_number_of_results(in_order) -> None:
    pipeline, _ = make(workers=3)
    seen: list[int] = []

    def frames():
        for index in itertools.count():
            seen.append(index)
            yield PICTURES[index % 24]

    stream = pipeline.stream(frames(), batch_size=2, max_waiting=5, in_order=in_order)
    for result in itertools.islice(stream, 100):
        assert result.index is not None
        assert len(seen) - result.index <= 5 + 2 + 2 * 2 * 3
    stream.close()


def test_leaving_a_stream_early_ends_its_workers() -> None:
    pipeline, _ = make(workers=3)

    def running() -> int:
        return sum(thread.name.startswith("sacvit-worker") for thread in threading.enumerate())

    stream = pipeline.stream(itertools.cycle(PICTURES), batch_size=2)
    next(stream)
    assert running() > 0
    stream.close()
    assert running() == 0


def test_a_failure_in_a_worker_ends_the_stream(monkeypatch) -> None:
    pipeline, _ = make(workers=2)
    stream = pipeline.stream(itertools.cycle(PICTURES), batch_size=2)
    next(stream)
    pipeline.close()
    with pytest.raises(EngineError, match="closed"):
        list(stream)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("readers", [0, 3])
def test_a_bad_file_comes_after_the_results_before_it(files, readers, workers) -> None:
    pipeline, _ = make(workers=workers)
    files[7].write_text("no picture")
    stream = pipeline.stream(files, batch_size=3, readers=readers)
    assert list(itertools.islice(stream, 7)) == pipeline(files[:7])
    with pytest.raises(ImageError, match=r"picture '.*07\.png' is not"):
        next(stream)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("in_order", [True, False])
def test_bad_files_are_skipped_where_that_is_asked_for(files, in_order, workers) -> None:
    pipeline, _ = make(workers=workers)
    wanted = {index: result for index, result in enumerate(pipeline(files)) if index not in (0, 7)}
    for index in (0, 7):
        files[index].write_text("no picture")
    told = {}

    def skip(index, frame, error) -> None:
        told[index] = frame, error.problem

    stream = pipeline.stream(files, batch_size=3, in_order=in_order, on_error=skip)
    found = {result.index: result for result in stream}
    assert found == wanted
    assert not in_order or list(found) == list(wanted)
    assert [told[index][0] for index in sorted(told)] == [files[0], files[7]]
    assert "is not a picture" in told[7][1]


@pytest.mark.parametrize(
    "option",
    [
        {"max_delay_ms": -1},
        {"max_delay_ms": float("nan")},
        {"max_delay_ms": "5"},
        {"in_order": 1},
        {"in_order": None},
        {"readers": -1},
        {"readers": 2.5},
    ],
)
def test_options_out_of_range_are_refused_where_they_are_given(option) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        make()[0].stream([], **option)
