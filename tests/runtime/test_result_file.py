from __future__ import annotations

import csv
import io
import json
import os
import sys

import pytest

from sacvit_deploy.errors import ConfigError, MissingDependencyError
from sacvit_deploy.files import folder_lock
from sacvit_deploy.runtime.result_file import (
    COLUMNS,
    LABELLED_COLUMNS,
    Key,
    check_results,
    result_file,
    write_results,
)


def row(image: str, frame: int | None = None) -> dict:
    best = ((2, 'a "big", cat', 0.5), (0, "dog", 0.25))
    values = {
        "image": image,
        "class_index": 2,
        "label": 'a "big", cat',
        "probability": 0.5,
        "stage": "refine",
        "early_exit_probability": 0.1,
        "top5": best,
        "target_tokens": (3, 1),
    }
    return values if frame is None else {**values, "frame": frame}


ODD = os.fsdecode(b'a\n"b",\xff.jpg')
ROWS = [row("a/1.jpg"), row("clip.mp4", 0), row("clip.mp4", 7), row(ODD), row("ä.jpg")]
KEYS = {Key(each["image"], each.get("frame")) for each in ROWS}


def written(path, rows=ROWS, *, resume=False) -> frozenset[Key]:
    with result_file(path, resume=resume) as (write, done):
        for each in rows:
            write(each)
    return done


def read_csv(path):
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_json_lines(tmp_path):
    path = tmp_path / "r.jsonl"
    assert written(path) == frozenset()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == json.loads(json.dumps(ROWS))


def test_csv(tmp_path):
    path = tmp_path / "r.csv"
    written(path)
    found = read_csv(path)
    assert [tuple(each) for each in found] == [COLUMNS] * len(ROWS)
    assert [each["image"] for each in found] == [each["image"] for each in ROWS]
    assert [each["frame"] for each in found] == ["", "0", "7", "", ""]
    assert json.loads(found[0]["top5"]) == [list(each) for each in ROWS[0]["top5"]]
    assert (found[0]["target_tokens"], found[0]["kept_tokens"]) == ("[3, 1]", "")
    assert found[0]["label"] == 'a "big", cat'


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the parquet extra")
    path = tmp_path / "r.parquet"
    written(path, [*ROWS, *[row(str(number)) for number in range(1500)]])
    table = parquet.read_table(path)
    assert tuple(table.column_names) == COLUMNS
    assert table.num_rows == len(ROWS) + 1500
    first, second = table.slice(0, 2).to_pylist()
    assert first["top5"][1] == {"class_index": 0, "label": "dog", "probability": 0.25}
    assert (first["frame"], second["frame"]) == (None, 0)
    assert first["target_tokens"] == [3, 1]
    assert table.slice(3, 1).to_pylist()[0]["image"] == 'a\n"b",\\udcff.jpg'


def test_parquet_that_was_stopped_leaves_nothing(tmp_path):
    pytest.importorskip("pyarrow", reason="needs the parquet extra")
    with pytest.raises(KeyError, match="top5"):
        written(tmp_path / "r.parquet", [ROWS[0], {"image": "a"}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv"])
def test_a_row_is_in_the_file_at_once(tmp_path, name):
    path = tmp_path / name
    with result_file(path) as (write, _):
        write(ROWS[0])
        before = path.stat().st_size
        assert before > 100
        write(ROWS[1])
        assert path.stat().st_size > before


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv"])
def test_a_file_that_was_cut_anywhere_is_resumed(tmp_path, name):
    whole = tmp_path / name
    written(whole)
    content = whole.read_bytes()
    for cut in range(len(content)):
        path = tmp_path / f"cut{whole.suffix}"
        path.write_bytes(content[:cut])
        with result_file(path, resume=True) as (write, done):
            assert done <= KEYS
            for each in ROWS:
                if Key(each["image"], each.get("frame")) not in done:
                    write(each)
        assert path.read_bytes() == content, cut
    assert written(whole, [], resume=True) == KEYS


def test_resume_where_there_is_nothing_starts(tmp_path):
    assert written(tmp_path / "r.csv", resume=True) == frozenset()
    assert len(read_csv(tmp_path / "r.csv")) == len(ROWS)


@pytest.mark.parametrize(
    ("name", "content", "resume", "says"),
    [
        ("r.jsonl", "", False, "exists"),
        ("r.txt", None, False, r"Name it \.jsonl, \.csv, \.parquet"),
        ("r.parquet", "", True, "cannot be resumed"),
        ("r.jsonl", '{"path": "a"}\n', True, "does not hold results"),
        ("r.jsonl", "[1]\n", True, "does not hold results"),
        ("r.csv", "path,label\n", True, "does not hold results"),
        ("r.csv", ",".join(COLUMNS).replace("image", "path") + "\n", True, "its columns are path"),
    ],
)
def test_files_that_are_refused_are_left_alone(tmp_path, name, content, resume, says):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=says), result_file(path, resume=resume):
        pass
    assert (path.read_text() if path.exists() else None) == content


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be written: .*No such file"):
        written(tmp_path / "none" / "r.jsonl")


def test_two_runs_do_not_write_one_file(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("")
    with (
        folder_lock(path),
        pytest.raises(ConfigError, match="is being written by another process"),
    ):
        written(path, resume=True)


WHOLE = ["r.jsonl", "r.csv", "r.parquet"]


def labelled(image: str) -> dict:
    return {**row(image), "true_class_index": 0, "true_label": "dog", "correct": False}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_replaces_an_old_one(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="needs the parquet extra")
    path.write_text("old")
    write_results(path, map(labelled, ("a.jpg", "b.jpg")), LABELLED_COLUMNS)
    if path.suffix == ".jsonl":
        found = [json.loads(line) for line in path.read_text().splitlines()]
        assert found == json.loads(json.dumps([labelled("a.jpg"), labelled("b.jpg")]))
    elif path.suffix == ".csv":
        found = read_csv(path)
        assert tuple(found[0]) == LABELLED_COLUMNS
        assert (found[1]["image"], found[1]["correct"]) == ("b.jpg", "false")
    else:
        table = parquet.read_table(path)
        assert tuple(table.column_names) == LABELLED_COLUMNS
        assert table.to_pylist()[1]["correct"] is False
        assert table.to_pylist()[1]["true_label"] == "dog"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", WHOLE)
def test_a_failure_leaves_the_old_file_and_no_part_of_the_new_one(tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="needs the parquet extra")

    def rows():
        yield labelled("a.jpg")
        raise ZeroDivisionError

    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_results(path, rows(), LABELLED_COLUMNS)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_is_tried_before_the_work(tmp_path, monkeypatch):
    check_results(tmp_path / "r.csv")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "d.csv").mkdir()
    unwritable = "cannot be written"
    for path, says in (("r.txt", "Name it"), ("none/r.csv", unwritable), ("d.csv", unwritable)):
        with pytest.raises(ConfigError, match=says):
            check_results(tmp_path / path)
        with pytest.raises(ConfigError, match=says):
            write_results(tmp_path / path, [])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match="Parquet"):
        check_results(tmp_path / "r.parquet")
