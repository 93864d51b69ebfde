from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from typing import Any

import pytest

from sacvit_deploy.commands import evaluate
from sacvit_deploy.evaluation.evaluate import Evaluation, run_evaluation
from sacvit_deploy.runtime.result_file import LABELLED_COLUMNS
from tests.labelled_pictures import write_pictures


@pytest.fixture(scope="module")
def data(sac_host, tmp_path_factory):
    labels = list(sac_host.manifest.labels[:3])
    return write_pictures(tmp_path_factory.mktemp("evaluate") / "pictures", labels, 2 * len(labels))


def test_a_table_for_a_person(invoke, sac_host, data):
    ran = invoke("evaluate", sac_host.path, data)
    assert ran.code == 0, ran
    assert ran.err == ""
    assert "6 pictures of pictures" in ran.out
    assert "default of the bundle" in ran.out
    assert "second stage alone" in ran.out


def test_one_threshold_is_one_object(invoke, sac_host, data):
    ran = invoke("evaluate", sac_host.path, data, "--eta", "0", "--json")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert (found["eta"], found["early_exit_fraction"], found["refine_fraction"]) == (0, 1, 0)
    assert found["top1"] == found["top1_early_exit_only"]
    assert "rows" not in found


def test_several_are_rows(invoke, sac_host, data):
    ran = invoke("evaluate", sac_host.path, data, "--eta", "0", "--eta", "1", "--json")
    first, second = json.loads(ran.out)["rows"]
    assert first["top1"] == first["top1_early_exit_only"]
    assert second["top1"] == second["top1_refine_only"]
    assert second["macs_mean_g"] > first["macs_mean_g"]


def test_a_dense_bundle_and_its_mark_in_a_report(invoke, sac_host, dense_bundle, data, tmp_path):
    ran = invoke("evaluate", dense_bundle.path, data, "--json")
    assert ran.code == 0, ran
    assert json.loads(ran.out)["eta"] is None
    (tmp_path / "dense.json").write_text(ran.out)
    report = tmp_path / "report.html"
    arguments = ("evaluate", sac_host.path, data, "--report", report)
    ran = invoke(*arguments, "--compare", tmp_path / "dense.json")
    assert ran.code == 0, ran
    assert f"Written to {report}" in ran.out
    assert "bundle fp32" in report.read_text(encoding="utf-8")


def test_ids_with_class_names_and_a_bad_picture(invoke, sac_host, tmp_path):
    write_pictures(tmp_path / "data", ["n1"], 2)
    (tmp_path / "data" / "n1" / "bad.png").write_bytes(b"")
    (tmp_path / "names.txt").write_text(f"n1 {sac_host.manifest.labels[3]}\n")
    arguments = ("evaluate", sac_host.path, tmp_path / "data", "--class-names")
    ran = invoke(*arguments, tmp_path / "names.txt", "--json")
    assert ran.code == 0, ran
    assert "bad.png" in ran.err
    found = json.loads(ran.out)
    assert found["images"] == 2
    assert found["classes"][0]["class_index"] == 3
    assert len(found["skipped"]) == 1


def read_rows(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        kept = {"image": str, "true_label": str, "label": str, "stage": str}
        return [
            {
                name: kept.get(name, lambda text: text and json.loads(text))(text)
                for name, text in row.items()
            }
            for row in rows
        ]
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the parquet extra")
    return parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.parquet"])
def test_the_figures_follow_from_the_predictions(invoke, sac_host, data, tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="needs the parquet extra")
    file = tmp_path / name
    file.write_text("an old file")
    eta = ("--eta", "0.145", "--eta", "1")
    ran = invoke("evaluate", sac_host.path, data, *eta, "--predictions", file, "--json")
    assert ran.code == 0, ran
    found, rows = json.loads(ran.out), read_rows(file)
    first = found["rows"][0]
    assert [row["image"] for row in rows] == sorted(map(str, data.rglob("*.png")))
    assert set(rows[0]) <= set(LABELLED_COLUMNS)
    assert sum(row["correct"] for row in rows) / 6 == first["top1"]
    early = sum(row["stage"] == "early_exit" for row in rows) / 6
    assert early == first["early_exit_fraction"]
    pairs = Counter((row["true_class_index"], row["class_index"]) for row in rows)
    assert sorted([*pair, count] for pair, count in pairs.items()) == found["confusions"]
    for row in rows:
        assert row["true_label"] in row["image"]
        assert len(row["top5"]) == 5
        assert bool(row.get("target_tokens")) == (row["stage"] == "refine")
    assert list(tmp_path.iterdir()) == [file]


def test_a_picture_that_cannot_be_read_is_told_and_not_in_the_predictions(
    invoke, sac_host, tmp_path
):
    folder = write_pictures(tmp_path / "data", sac_host.manifest.labels[:1], 2)
    (folder / sac_host.manifest.labels[0] / "bad.png").write_bytes(b"")
    file = tmp_path / "p.jsonl"
    ran = invoke("evaluate", sac_host.path, folder, "--predictions", file)
    assert "bad.png" in ran.err
    assert f"Written to {file}" in ran.out
    assert len(read_rows(file)) == 2


def test_the_place_of_the_predictions_is_tried_before_the_work(
    invoke, refused, sac_host, data, tmp_path
):
    arguments = ("evaluate", sac_host.path, data, "--predictions")
    assert "cannot be written" in refused(*arguments, tmp_path / "none" / "p.csv")
    assert "Name it" in refused(*arguments, tmp_path / "p.txt")
    table = tmp_path / "data.csv"
    table.write_text("a.png,dog\n")
    ran = invoke("evaluate", sac_host.path, table, "--predictions", tmp_path / "." / "data.csv")
    assert ran.code == 2
    assert "replace DATA" in ran.err
    assert list(tmp_path.iterdir()) == [table]


def test_no_file_of_a_call_replaces_another(invoke, sac_host, tmp_path):
    table = tmp_path / "data.csv"
    table.write_text("a.png,dog\n")
    call = ("evaluate", sac_host.path, table)
    ran = invoke(*call, "--report", tmp_path / "." / "data.csv")
    assert (ran.code, "--report would replace DATA" in ran.err) == (2, True)
    ran = invoke(*call, "--predictions", tmp_path / "p.csv", "--report", tmp_path / "p.csv")
    assert (ran.code, "--report would replace --predictions" in ran.err) == (2, True)
    assert table.read_text() == "a.png,dog\n"


@pytest.mark.parametrize("as_json", [True, False])
def test_results_are_shown_although_a_file_cannot_be_written(
    invoke, sac_host, data, tmp_path, monkeypatch, as_json
):
    folder = tmp_path / "gone"
    folder.mkdir()

    def evaluated(*how: Any) -> Evaluation:
        found = run_evaluation(*how)
        shutil.rmtree(folder)
        return found

    monkeypatch.setattr(evaluate, "run_evaluation", evaluated)
    call = ("evaluate", sac_host.path, data, "--predictions", folder / "p.csv")
    ran = invoke(*call, *(["--json"] if as_json else []))
    assert ran.code == 1
    assert "p.csv cannot be written" in ran.err
    assert json.loads(ran.out)["images"] == 6 if as_json else "second stage alone" in ran.out
    assert "Written" not in ran.out


def test_the_report_shows_pictures_of_the_data(invoke, sac_host, data, tmp_path):
    report = tmp_path / "report.html"
    ran = invoke("evaluate", sac_host.path, data, "--report", report)
    assert ran.code == 0, ran
    wrong = round(
        6 * (1 - json.loads(invoke("evaluate", sac_host.path, data, "--json").out)["top1"])
    )
    assert wrong
    assert report.read_text(encoding="utf-8").count("data:image/jpeg;base64,") == wrong


def test_what_is_refused_leaves_no_report(refused, sac_host, data, tmp_path):
    report = tmp_path / "report.html"
    arguments = ("evaluate", sac_host.path)
    ending = ("--report", report)
    assert "eta" in refused(*arguments, data, "--eta", "1.5", *ending)
    assert "does not exist" in refused(*arguments, tmp_path / "none", *ending)
    assert "no pictures" in refused(*arguments, tmp_path, *ending)
    write_pictures(tmp_path / "dogs", ["dog"], 1)
    assert "'dog'" in refused(*arguments, tmp_path / "dogs", *ending)
    (tmp_path / "dogs" / "dog" / "000.png").write_bytes(b"no")
    stop = ("--on-corrupt", "stop", "--class-names", tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text(f"dog {sac_host.manifest.labels[0]}\n")
    assert "000.png" in refused(*arguments, tmp_path / "dogs", *stop, *ending)
    assert "int8" in refused(*arguments, data, "--precision", "int8", *ending)
    assert "not an evaluation" in refused(*arguments, data, "--compare", data / "none", *ending)
    assert not report.exists()
    assert not list(tmp_path.glob(".*"))


def test_the_place_of_the_report_is_tried_before_the_work(refused, sac_host, data, tmp_path):
    said = refused("evaluate", sac_host.path, data, "--report", tmp_path / "none" / "report.html")
    assert "cannot be written" in said
    assert "folder" in refused("evaluate", sac_host.path, data, "--report", tmp_path)


def test_comparing_needs_a_report(invoke, sac_host, data):
    ran = invoke("evaluate", sac_host.path, data, "--compare", "other.json")
    assert ran.code == 2
    assert "--report" in ran.err
