from __future__ import annotations

import json
from pathlib import Path

import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.manifest import MANIFEST
from tests.labelled_pictures import write_pictures

COUNT = 60
HALF = ("--target-exit-fraction", "0.5")


@pytest.fixture(scope="module")
def data(sac_host, tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data"), sac_host.manifest.labels, COUNT)


def test_it_says_what_it_found_and_keeps_it(invoke, copied, data):
    ran = invoke("calibrate", copied, data, *HALF)
    assert ran.code == 0, ran
    manifest = Bundle.open(copied).manifest
    lines = ran.out.splitlines()
    assert lines[0].startswith(f"eta {manifest.eta:.6g} for target_exit_fraction=0.5: fp32 in")
    assert lines[-1] == "written to the bundle"
    assert "Warning: 60 pictures are few" in ran.err
    shown = invoke("inspect", copied).out
    assert f"exit     fp32 in onnxruntime: eta {manifest.eta:.4g} for target_exit_fraction" in shown
    assert f"{COUNT} pictures" in shown


def test_the_document_is_that_of_the_contract(invoke, copied, data):
    ran = invoke("calibrate", copied, data, *HALF, "--temperature-scaling", "--json")
    assert ran.code == 0, ran
    values = json.loads(ran.out)
    assert {"eta", "top1", "macs_mean_g", "curve", "intervals", "temperature"} <= set(values)
    assert values["early_exit_fraction"] >= 0.5
    assert values["written"] is True
    (record,) = Bundle.open(copied).manifest.exit_calibrations
    assert (record.eta, record.temperature) == (values["eta"], values["temperature"])
    assert f", temperature {record.temperature:.4g} for" in invoke("inspect", copied).out


def test_without_a_goal_hardly_any_accuracy_is_lost(invoke, copied, data):
    values = json.loads(invoke("calibrate", copied, data, "--json", "--dry-run").out)
    assert values["goal"]["kind"] == "max_accuracy_drop"
    assert values["goal"]["value"] == 0.005
    assert values["top1"] >= values["reference_top1"] - 0.005
    assert values["written"] is False
    assert Bundle.open(copied).manifest.exit_calibrations == ()


def test_the_drop_is_in_points_and_the_dry_run_says_so(invoke, copied, data):
    ran = invoke("calibrate", copied, data, "--max-accuracy-drop", 1, "--dry-run")
    assert "drop " in ran.out
    assert ran.out.splitlines()[-1] == "dry run: the bundle is unchanged"


def test_classes_that_are_ids(invoke, refused, copied, tmp_path):
    labels = Bundle.open(copied).manifest.labels
    ids = [f"n{index:03}" for index in range(len(labels))]
    data = write_pictures(tmp_path / "data", ids, COUNT)
    before = (copied / MANIFEST).read_bytes()
    assert "--class-names" in refused("calibrate", copied, data, *HALF)
    assert (copied / MANIFEST).read_bytes() == before
    names = tmp_path / "names.json"
    names.write_text(json.dumps(dict(zip(ids, labels, strict=True))))
    assert invoke("calibrate", copied, data, *HALF, "--class-names", names).code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--target-macs", 1, "--target-latency-ms", 8), "2 goals: target_macs, target_latency"),
        (("--target-exit-fraction", 1.5), "out of range"),
        (("--max-accuracy-drop", "nan"), "out of range"),
        (("--target-macs", 1, "--percentile", 95), "only with a target latency"),
        (("--target-macs", 1, "--reference-top1", 0.5), "only with a limit to the drop"),
        (("--target-macs", 1e-9), "No exit threshold meets"),
        (("--reference-top1", 1), "No exit threshold meets max_accuracy_drop=0.005"),
        (("--precision", "int8"), "int8"),
        (("--class-names", "nowhere.json"), "nowhere.json"),
        (("--plot", "curve.pdf"), "Name it .png or .svg"),
    ],
)
def test_a_mistake_is_one_error_and_the_bundle_is_as_it_was(refused, copied, data, arguments, says):
    before = (copied / MANIFEST).read_bytes()
    assert says in refused("calibrate", copied, data, *arguments)
    assert (copied / MANIFEST).read_bytes() == before


def test_one_stage_is_refused(refused, dense_bundle, data):
    assert "one stage" in refused("calibrate", dense_bundle.path, data)


def test_too_few_pictures_are_refused(refused, copied, tmp_path):
    few = write_pictures(tmp_path / "few", Bundle.open(copied).manifest.labels, 20)
    assert "20 pictures" in refused("calibrate", copied, few)


@pytest.mark.parametrize("name", ["curve.png", "curve.svg"])
def test_the_plot_is_written(invoke, copied, data, tmp_path, name):
    plot = tmp_path / name
    ran = invoke("calibrate", copied, data, *HALF, "--plot", plot)
    assert ran.code == 0, ran
    start = plot.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if name.endswith(".png") else b"<svg" in plot.read_bytes()


def test_a_batch_finds_the_same_threshold(invoke, copied, data):
    call = ("calibrate", copied, data, "--target-exit-fraction", 0.5, "--dry-run", "--json")
    one, eight = (
        json.loads(invoke(*call, *more).out) for more in ((), ("--batch-size", 8, "--threads", 1))
    )
    assert eight["eta"] == pytest.approx(one["eta"], rel=1e-5)
    assert eight["top1"] == one["top1"]
    assert (one["batch_size"], eight["batch_size"]) == (1, 8)
    said = invoke(*call[:-1], "--batch-size", 8).out
    assert "as a picture's share of its batch of 8 on this machine" in said


@pytest.mark.parametrize("more", [(), ("--percentile", 95)])
def test_a_latency_is_not_limited_in_batches(refused, invoke, copied, data, more):
    call = ("calibrate", copied, data, "--target-latency-ms", 1000, *more, "--dry-run")
    said = refused(*call, "--batch-size", 8)
    assert "A latency was limited with a batch size of 8" in said
    assert invoke(*call, "--batch-size", 1).code == 0


@pytest.mark.parametrize("verb", ["run", "evaluate", "calibrate"])
def test_counts_have_the_same_bounds_everywhere(refused, copied, data, verb):
    for option, says in (("--threads", "threads"), ("--batch-size", "batch_size")):
        assert says in refused(verb, copied, data, option, 0)
        assert says in refused(verb, copied, data, option, 10**12)
