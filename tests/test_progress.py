from __future__ import annotations

import time

import pytest

from sacvit_deploy.progress import PictureCount, Steps, clock


def test_steps_are_shares_of_the_whole():
    told: list[tuple[float, str]] = []
    steps = Steps(lambda share, text: told.append((share, text)), {"a": 1, "b": 3})
    steps.part("a")(0.5, "half of a")
    steps.part("b")(0.0, "begin of b")
    steps.part("b")(1.0, "end of b")
    assert told == [(0.125, "half of a"), (0.25, "begin of b"), (1.0, "end of b")]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_time_is_told_in_minutes(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("total", "text", "done", "before", "words"),
    [
        (2000, "", 500, 0, "500 of 2,000 pictures, 50.0/s, 0:30 left"),
        (2000, "running fp32", 500, 0, "running fp32: 500 of 2,000, 50.0/s, 0:30 left"),
        (2000, "", 500, 400, "500 of 2,000 pictures, 10.0/s, 2:30 left"),
        (2000, "", 2000, 0, "2,000 of 2,000 pictures, 200/s"),
        (None, "", 500, 0, "500 pictures, 50.0/s"),
        (2000, "", 0, 0, "0 of 2,000 pictures"),
    ],
)
def test_pictures_in_words(monkeypatch, total, text, done, before, words):
    monkeypatch.setattr(time, "perf_counter", lambda: 110.0)
    passing = PictureCount(total, text, start=100.0)
    assert passing.in_words(done, before) == words
    assert passing.share(done) == (done / total if total else 0)
