from __future__ import annotations

import json
import os

import pytest

from sacvit_deploy.errors import DataError
from sacvit_deploy.training.metrics import MetricsLog


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in (1, 2, 3):
        log.write(step, {"total": step / 2})
    with path.open("a") as stream:
        stream.write('{"step": 3, "tot')
    MetricsLog(path, 2).write(3, {"total": 9.0})
    assert lines(path) == [
        {"step": 1, "total": 0.5},
        {"step": 2, "total": 1.0},
        {"step": 3, "total": 9.0},
    ]


def test_lines_that_are_none_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\n[1]\n{"total": 1}\n{"step": "1"}\n' + b"[" * 9999)
    MetricsLog(path, 5)
    assert lines(path) == [{"step": 1}]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(DataError, match="cannot be continued"):
        MetricsLog(tmp_path / "metrics.jsonl", 0)


def test_a_full_disk(tmp_path):
    log = MetricsLog(tmp_path / "gone" / "metrics.jsonl", 0)
    with pytest.raises(DataError, match="cannot be written"):
        log.write(1, {})


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, tmp_path / "events")
    log.write(1, {"total": 1.0})
    log.close()
    assert list((tmp_path / "events").iterdir())
