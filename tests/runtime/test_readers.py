from __future__ import annotations

import itertools
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sacvit_deploy.errors import ConfigError, ImageError
from sacvit_deploy.runtime.control.stats import Stats
from sacvit_deploy.runtime.pictures import PictureSource
from sacvit_deploy.runtime.readers import Reader, reader_threads
from sacvit_deploy.samples import Sample

FRAME = np.zeros((2, 2, 3), np.uint8)


def reader(prepare) -> Reader:
    return Reader(prepare, time.perf_counter, Stats())


def number(source) -> np.ndarray:
    return np.array([int(source)])


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("sacvit-reader")]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_files_come_in_order_whoever_is_done_first(count) -> None:
    def slow(source):
        time.sleep(0.02 if int(source) % 3 == 0 else 0)
        return number(source)

    names = [str(index) for index in range(20)]
    found = list(reader(slow).ahead(names, threads=count, room=6))
    assert [read.name for read in found] == names
    assert [int(read.array[0]) for read in found] == list(range(20))
    assert not threads()


def test_files_are_read_ahead_at_the_same_time_but_no_further_than_the_room() -> None:
    started: list[int] = []
    together = threading.Barrier(3, timeout=5)

    def prepare(source):
        started.append(int(source))
        if int(source) in (0, 1, 2):
            together.wait()
        return number(source)

    taken: list[int] = []

    def names():
        for index in itertools.count():
            taken.append(index)
            yield str(index)

    reads = reader(prepare).ahead(names(), threads=3, room=5)
    assert next(reads).name == "0"
    assert taken == [0, 1, 2, 3, 4]
    for index in range(1, 10):
        assert next(reads).name == str(index)
        assert len(taken) == index + 5
    reads.close()
    assert set(started) <= set(range(15))
    assert not threads()


def test_frames_of_a_camera_are_taken_one_by_one_in_the_callers_thread() -> None:
    where: set[int] = set()

    def camera():
        for _ in range(4):
            where.add(threading.get_ident())
            seen.append(1)
            yield FRAME

    def prepare(source):
        where.add(threading.get_ident())
        return source

    seen: list[int] = []
    for count, _ in enumerate(reader(prepare).ahead(camera(), threads=3, room=8), start=1):
        assert len(seen) == count
    assert where == {threading.get_ident()}


def test_files_and_frames_may_alternate() -> None:
    mixed: list[PictureSource] = ["1", FRAME, Path("2"), FRAME, "3", "4"]
    found = [read.name for read in reader(lambda s: s).ahead(mixed, threads=2, room=4)]
    assert found == ["1", None, "2", None, "3", "4"]


@pytest.mark.parametrize("count", [0, 2])
def test_a_bad_file_comes_after_those_before_it_and_is_named(count) -> None:
    def prepare(source):
        if source == "3":
            raise ImageError("It is bad.", "Make it good.")
        return number(source)

    reads = reader(prepare).ahead(map(str, range(9)), threads=count, room=8)
    assert [next(reads).name for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(ImageError, match=r"^It is bad\."):
        next(reads)
    assert list(reads) == []
    assert not threads()


def test_a_bad_picture_without_a_name_is_told_by_its_position() -> None:
    def prepare(source):
        if source.size != FRAME.size:
            raise ImageError("It is bad.", "Make it good.")
        return source

    reads = reader(prepare).ahead([FRAME, FRAME, FRAME[:0]], threads=0, room=2)
    with pytest.raises(ImageError, match=r"At index 2: It is bad\.") as caught:
        list(reads)
    assert isinstance(caught.value.__cause__, ImageError)


@pytest.mark.parametrize("count", [0, 2])
def test_bad_files_are_told_and_skipped(count) -> None:
    def prepare(source):
        if source in "35":
            raise ImageError(f"{source} is bad.", "Make it good.")
        return number(source)

    told = []
    reads = reader(prepare).ahead(
        map(str, range(7)),
        threads=count,
        room=3,
        on_error=lambda position, source, error: told.append((position, source, error.problem)),
    )
    assert [(read.position, read.name) for read in reads] == [(n, str(n)) for n in (0, 1, 2, 4, 6)]
    assert told == [(3, "3", "3 is bad."), (5, "5", "5 is bad.")]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("count", [0, 2])
def test_an_error_of_the_source_comes_after_the_files_before_it(error, count) -> None:
    def names():
        yield from "0123"
        raise error("unplugged")

    reads = reader(number).ahead(names(), threads=count, room=8)
    assert [next(reads).name for _ in range(4)] == list("0123")
    with pytest.raises(error, match="unplugged"):
        next(reads)
    assert not threads()


def test_waiting_counts_and_not_reading_for_a_budget() -> None:
    class Controller:
        def __init__(self) -> None:
            self.waits: list[float] = []

        def saw_preprocess(self, ms: float) -> None:
            self.waits.append(ms)

    def prepare(source):
        time.sleep(0.02)
        return number(source)

    controller, stats = Controller(), Stats()
    made = Reader(prepare, time.perf_counter, stats, controller)  # type: ignore[arg-type]
    for _ in made.ahead(map(str, range(8)), threads=2, room=8):
        time.sleep(0.03)  # the network
    spent = stats.snapshot().preprocess
    assert spent is not None
    assert spent.pictures == len(controller.waits) == 8
    assert spent.latency_ms_mean >= 20
    assert np.median(controller.waits) < 10


def test_threads_share_one_zip(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for index in range(40):
            archive.writestr(str(index), bytes([index]) * 5000)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        samples = [Sample(str(index), "cat", archive) for index in range(40)]

        def prepare(sample):
            with sample.open() as stream:
                return np.frombuffer(stream.read(), np.uint8)

        found = list(reader(prepare).ahead(samples, threads=4, room=16))
    assert [set(read.array.tolist()) for read in found] == [{index} for index in range(40)]


@pytest.mark.parametrize("asked", [-1, 65, 1.5, "2", True, [1]])
def test_threads_out_of_range_are_refused(asked) -> None:
    with pytest.raises(ConfigError, match="readers"):
        reader_threads(asked)


def test_threads_by_default_and_as_asked() -> None:
    assert [reader_threads(count) for count in (0, 1, 64)] == [0, 1, 64]
    assert 1 <= reader_threads(None) <= 4
