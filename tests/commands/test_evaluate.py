from __future__ import annotations

import json

import pytest

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
