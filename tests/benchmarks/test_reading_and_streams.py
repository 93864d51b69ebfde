"""The benchmarks of reading and of streams run, and say what they compare."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from benchmarks import reading, streams
from tests.labelled_pictures import write_pictures


@pytest.fixture
def run(monkeypatch, capsys):
    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        script.main()
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "large.jpg"
    Image.effect_noise((1400, 1300), 60).convert("RGB").save(path)
    return path


def test_a_row_for_each_picture_and_the_decisions(run, photograph, tmp_path):
    data = write_pictures(tmp_path / "data", ["tabby", "espresso"], 4)
    found = run(reading, photograph, "--repeats", 1, "--data", data, "--side", 400)
    (row,) = found["rows"]
    assert row["size"] == [1400, 1300]
    assert row["exact_ms_p50"] > 0
    assert 0 < row["max_difference"] < 60
    assert found["decisions"]["pictures"] == 4
    assert found["decisions"]["confidence_mean_difference"] > 0


def test_both_comparisons_give_the_same_answers(run, photograph):
    found = run(
        streams, photograph, "--count", 10, "--turns", 1, "--threads", 1, "--backend", "onnxruntime"
    )
    assert [row["what"] for row in found["rows"]] == ["arrays", "files"]
    for row in found["rows"]:
        assert row["same_answers"]
        assert row["stream_images_per_s"] > 0
