from __future__ import annotations

import json

import pytest

from sacvit_deploy.errors import DataError
from sacvit_deploy.evaluation.compared import read_compared
from tests.evaluation.evaluations import fake_evaluation
from tests.fakes import DENSE


def test_other_evaluations_are_read_back(tmp_path):
    file = tmp_path / "other.json"
    file.write_text(json.dumps(fake_evaluation(etas=(0.4, 0.6)).to_dict()))
    first, second = read_compared(file)
    assert (first.name, second.name) == ("bundle fp32, eta 0.4", "bundle fp32, eta 0.6")
    file.write_text(json.dumps(fake_evaluation(DENSE).to_dict()))
    (only,) = read_compared(file)
    assert only.name == "bundle fp32"
    row = fake_evaluation(DENSE).rows[0]
    assert (only.top1, only.top1_interval) == (row.top1, row.top1_interval)
    assert (only.images, only.batch_size) == (40, 1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"top1": float("nan")}, "NaN is not a number"),
        ({"top1": 97.1}, "out of range"),
        ({"macs_mean_g": -1}, "out of range"),
        ({"latency_ms_mean": float("inf")}, "Infinity is not a number"),
        ({"macs_mean_g": 10**400}, "more than 20 digits"),
        ({"images": 0}, "no pictures"),
        ({"eta": 10**400}, "more than 20 digits"),
    ],
    ids=str,
)
def test_numbers_that_no_chart_can_show_are_refused(wrong, says, tmp_path):
    document = fake_evaluation().to_dict() | wrong
    (tmp_path / "other.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=says):
        read_compared(tmp_path / "other.json")


def test_a_folder_and_a_missing_file_are_told_in_words(tmp_path):
    with pytest.raises(DataError) as raised:
        read_compared(tmp_path)
    assert raised.value.problem == f"{tmp_path} is not an evaluation: it is a folder."
    with pytest.raises(DataError) as raised:
        read_compared(tmp_path / "none")
    assert (
        raised.value.problem
        == f"{tmp_path / 'none'} is not an evaluation: No such file or directory."
    )


def test_a_key_that_is_missing_is_named(tmp_path):
    document = fake_evaluation().to_dict()
    del document["images"]
    (tmp_path / "other.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"is not an evaluation: it has no 'images'\."):
        read_compared(tmp_path / "other.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{}]}', '{"rows": 3}'])
def test_what_is_no_evaluation_is_refused(text, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(DataError, match="is not an evaluation"):
        read_compared(tmp_path / "other.json")
