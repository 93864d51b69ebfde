from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from sacvit_deploy.samples import sample_pictures

QUICK = ("--seconds", "0", "--threads", "1")

OF_EVERY_ROW = {
    *("batch", "backend", "provider", "precision", "threads", "images_per_s"),
    *("overhead_ms_p50", "overhead_share", "first_answer_ms", "loaded_memory_mb"),
    *("peak_memory_mb", "floor_ms", "floor_share", "best_speedup", "kernel_ms", "product_share"),
    *("dense_ms_p50", "dense_ms_p95", "dense_ms_p99", "dense_first_answer_ms"),
    *("dense_loaded_memory_mb", "dense_peak_memory_mb", "dense_floor_ms", "dense_floor_share"),
    *("speedup", "files", "rounds"),
}
OF_TWO_STAGES = {
    *("sac_fraction", "two_stage_ms_p50", "two_stage_ms_p95", "two_stage_ms_p99"),
    *("early_exit_ms_p50", "refine_ms_p50", "refine_ms_per_image", "break_even_share"),
    *("early_exit_floor_ms", "early_exit_floor_share", "refine_floor_ms", "refine_floor_share"),
}
OF_THE_DOCUMENT = {
    *("device", "runtime", "versions", "bundle", "against", "weights", "clock"),
    *("memory_gb_per_s", "rows", "skipped"),
}


def test_two_stages_against_dense(invoke, sac_host, dense_bundle, tmp_path):
    picture = tmp_path / "speed.png"
    arguments = ("benchmark", sac_host.path, "--against", dense_bundle.path, "--batch", "1,4")
    chosen = ("--backend", "onnxruntime", "--sac-fraction", "0.25", "--plot", picture)
    ran = invoke(*arguments, *chosen, "--json", *QUICK)
    assert ran.code == 0, ran
    assert ran.err == ""
    found = json.loads(ran.out)
    assert found.keys() == OF_THE_DOCUMENT
    assert (found["runtime"], found["clock"]) == ("onnxruntime", "wall")
    assert {"onnxruntime", "numpy", "python"} <= found["versions"].keys()
    assert [row["batch"] for row in found["rows"]] == [1, 4]
    for row in found["rows"]:
        assert row.keys() == OF_EVERY_ROW | OF_TWO_STAGES
        assert row["sac_fraction"] == 0.25
        measured = row.keys() - {"files"}
        assert [key for key in measured if row[key] is None] == []
        parts = row["early_exit_ms_p50"] + 0.25 * row["batch"] * row["refine_ms_per_image"]
        assert parts < 3 * row["two_stage_ms_p50"]
        assert row["peak_memory_mb"] >= row["loaded_memory_mb"] > 10
        assert row["speedup"] == pytest.approx(
            row["dense_ms_p50"] / row["two_stage_ms_p50"], rel=0.01
        )
        assert set(row["kernel_ms"]) == set(row["product_share"]) == {"early_exit", "refine"}
    with Image.open(picture) as image:
        assert image.size[0] > 500


def test_one_stage_from_files_for_a_person(invoke, dense_bundle, tmp_path):
    for picture in sample_pictures():
        shutil.copy(picture, tmp_path)
    arguments = ("benchmark", dense_bundle.path, "--images", tmp_path, "--batch", "2")
    ran = invoke(*arguments, "--backend", "onnxruntime", *QUICK)
    assert ran.code == 0, ran
    assert "dense" not in ran.out.partition(" on ")[0].partition("bundle")[2]
    assert "files, batch 2, onnxruntime fp32, 1 thread: " in ran.out
    assert "read " in ran.out
    assert "second stage 0%" in ran.out


def test_keys_of_one_stage_and_of_files(invoke, dense_bundle, tmp_path):
    for picture in sample_pictures():
        shutil.copy(picture, tmp_path)
    arguments = ("benchmark", dense_bundle.path, "--images", tmp_path, "--batch", "2")
    ran = invoke(*arguments, "--backend", "onnxruntime", "--json", "--cpu-time", *QUICK)
    assert ran.code == 0, ran
    document = json.loads(ran.out)
    (row,) = document["rows"]
    assert document["clock"] == "cpu"
    assert row.keys() == OF_EVERY_ROW | {"ms_p50", "ms_p95", "ms_p99"}
    parts = ("read", "resize", "first_stage", "selection", "second_stage", "total")
    assert row["files"].keys() == {*(f"{part}_ms_p50" for part in parts), "images_per_s"}
    assert row["files"]["second_stage_ms_p50"] == 0
    assert row["files"]["total_ms_p50"] > row["files"]["read_ms_p50"] > 0


def test_everything_that_runs_here_is_compared(invoke, sac_host, dense_bundle):
    arguments = ("benchmark", sac_host.path, "--against", dense_bundle.path, "--batch", "1")
    ran = invoke(*arguments, "--compare", "--advise", "--json", *QUICK)
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    backends = {row["backend"] for row in found["rows"]}
    assert "onnxruntime" in backends
    times = [row["two_stage_ms_p50"] for row in found["rows"]]
    assert times == sorted(times)
    assert any(name.startswith("tensorrt fp32") for name in found["skipped"])
    advice = found["advice"]
    assert (advice["met"], advice["is_calibrated"], advice["alpha"]) == (True, False, 0.5)
    assert {each["backend"] for each in advice["break_even"]} == backends


def test_advice_for_a_person(invoke, sac_host):
    arguments = ("benchmark", sac_host.path, "--batch", "1", "--backend", "onnxruntime")
    ran = invoke(*arguments, "--advise", "--target-images-per-s", "1000000", *QUICK)
    assert ran.code == 0, ran
    assert "goal: at least 1e+06 images/s\nnothing meets it; the fastest is " in ran.out
    assert "accuracy is not known" in ran.out


def test_what_is_refused(refused, sac_host, dense_bundle, tmp_path):
    start = ("benchmark", sac_host.path)
    assert "has two stages" in refused(*start, "--against", sac_host.path)
    assert "sac_fraction" in refused(*start, "--sac-fraction", "1.5")
    assert "--threads 1" in refused(*start, "--cpu-time")
    assert "latency_ms" in refused(*start, "--advise", "--target-latency-ms", "0")
    assert "no early_exit graph in int8" in refused(
        *start, "--precision", "int8", "--backend", "onnxruntime"
    )
    assert "cannot be" in refused(*start, "--plot", tmp_path / "none" / "speed.png")
    assert "Two goals" in refused(
        *start, "--advise", "--target-latency-ms", "1", "--target-images-per-s", "1"
    )


@pytest.mark.parametrize(
    "chosen",
    [("--batch", "1,x"), ("--batch", "0"), ("--precision", "int9"), ("--target-latency-ms", "5")],
)
def test_wrong_usage(invoke, sac_host, chosen):
    assert invoke("benchmark", sac_host.path, *chosen).code == 2
