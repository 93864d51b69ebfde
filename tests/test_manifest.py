"""Calibrations of the exit in the description of a bundle, and what makes them stale."""

from __future__ import annotations

import dataclasses
import json
from pathlib import PurePosixPath

import pytest

from sacvit_deploy.bundle import (
    Bundle,
    new_bundle,
    publish,
    staging_folder,
    update_manifest,
    write_manifest,
)
from sacvit_deploy.errors import BundleError, BundleIntegrityError, ConfigError
from sacvit_deploy.manifest import MANIFEST, Manifest
from tests.exit_records import exit_record
from tests.fakes import DENSE, ENGINE, fake_manifest

RECORDS = (
    exit_record(),
    exit_record("fp16", eta=0.5, temperature=1.25),
    exit_record("fp16", "tensorrt"),
    exit_record("fp16", "tensorrt-rtx"),
)
POINTS = [dataclasses.asdict(point) for point in exit_record().curve]


def in_two_precisions() -> Manifest:
    manifest = fake_manifest()
    half = (
        dataclasses.replace(
            graph, precision="fp16", file=str(PurePosixPath(graph.file).with_suffix(".fp16.onnx"))
        )
        for graph in manifest.graphs
    )
    return dataclasses.replace(manifest, graphs=(*manifest.graphs, *half))


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    """FP32 and FP16 graphs, one engine, four calibrations."""
    manifest = in_two_precisions()
    engine = dataclasses.replace(
        ENGINE,
        role="refine",
        file="engines/sac.engine",
        precision_share={"half": 1.0},
        build_s=1.5,
    )
    with new_bundle(tmp_path / "bundle") as staging:
        (staging / "engines").mkdir()
        for file in (*(graph.file for graph in manifest.graphs), engine.file):
            (staging / file).write_text(file)
        write_manifest(
            staging, dataclasses.replace(manifest, engines=(engine,), exit_calibrations=RECORDS)
        )
    return Bundle.open(tmp_path / "bundle")


def test_records_are_read_back_as_they_were_written(bundle):
    assert bundle.manifest.exit_calibrations == RECORDS
    text = bundle.manifest.to_json()
    assert Manifest.from_json(text).to_json() == text


def test_a_record_is_found_by_precision_and_runtime(bundle):
    assert bundle.manifest.exit_calibration("fp16", "onnxruntime") == RECORDS[1]
    assert bundle.manifest.exit_calibration("fp16", "tensorrt") == RECORDS[2]
    assert bundle.manifest.exit_calibration("int8", "onnxruntime") is None
    assert bundle.manifest.exit_calibration("fp32", "tensorrt") is None


def test_older_descriptions_have_none(bundle):
    values = json.loads((bundle.path / MANIFEST).read_text())
    del values["exit_calibrations"]
    (bundle.path / MANIFEST).write_text(json.dumps(values))
    assert Bundle.open(bundle.path).manifest.exit_calibrations == ()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"eta": 1.5}, "eta is 1.5"),
        ({"eta": None}, "'eta' is None"),
        ({"temperature": 0}, "temperature is 0"),
        ({"top1": float("nan")}, "'top1' is nan"),
        ({"precision": "fp8"}, "not one of fp32"),
        ({"runtime": "torch"}, "not one of onnxruntime"),
        ({"images": "many"}, "an? int is needed"),
        ({"top1_interval": [0.5]}, "top-1 interval"),
        ({"top1_interval": [0.6, 0.5]}, "top-1 interval"),
        ({"confidence_histogram": [1.0]}, "has 1 bins"),
        ({"confidence_histogram": [0.1] * 20}, "add up to 2"),
        ({"confidence_histogram": [-1.0, 2.0] + [0.0] * 18}, "confidence histogram"),
        ({"curve": [{"eta": 0.5}]}, "'top1' is missing"),
        ({"curve": 5}, "a list is needed"),
        ({"curve": POINTS[::-1]}, "by ascending eta"),
        ({"curve": [POINTS[0] | {"eta": -0.1}]}, "eta is -0.1"),
        ({"images": 0}, "of 0 pictures"),
        ({"top1": 80.0}, "8000.0% are right"),
        ({"early_exit_fraction": -0.5}, "-50.0% leave early"),
    ],
)
def test_a_wrong_record_is_refused(bundle, changed, says):
    values = json.loads((bundle.path / MANIFEST).read_text())
    values["exit_calibrations"][0] |= changed
    (bundle.path / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(BundleError, match=says):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf"), True])
def test_a_temperature_is_a_finite_number_above_0(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        exit_record(temperature=temperature)


def test_records_fit_the_graphs():
    for manifest, records in (
        (fake_manifest(), RECORDS),
        (fake_manifest(), RECORDS[:1] * 2),
        (fake_manifest(DENSE), RECORDS[:1]),
    ):
        with pytest.raises(BundleIntegrityError, match="exit calibrations"):
            dataclasses.replace(manifest, exit_calibrations=records)


def test_a_new_record_takes_the_place_of_the_old(bundle):
    newer = exit_record("fp16", eta=0.25)
    manifest = bundle.manifest.with_calibration(newer)
    assert set(manifest.exit_calibrations) == {RECORDS[0], RECORDS[2], RECORDS[3], newer}
    update_manifest(bundle, manifest)
    assert Bundle.open(bundle.path).manifest == manifest


def test_the_threshold_of_fp32_in_onnxruntime_is_that_of_the_bundle():
    manifest = in_two_precisions()
    assert manifest.with_calibration(exit_record(eta=0.75)).eta == 0.75
    assert manifest.with_calibration(exit_record("fp16", eta=0.75)).eta == manifest.eta
    assert manifest.with_calibration(exit_record("fp32", "tensorrt")).eta == manifest.eta
    assert manifest.with_calibration(exit_record(temperature=2.0)).eta == manifest.eta


def replace_files(bundle: Bundle, *names: str) -> Bundle:
    with staging_folder(bundle) as staging:
        for name in names:
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text("changed")
        return publish(bundle, staging, bundle.manifest)


@pytest.mark.parametrize(
    ("file", "kept"),
    [
        ("ee.fp16.onnx", RECORDS[:1]),
        ("engines/sac.engine", (RECORDS[0], RECORDS[1], RECORDS[3])),
        ("engines/other.engine", RECORDS),
        ("ee.int8.onnx", RECORDS),
    ],
)
def test_what_a_replaced_file_was_measured_with_is_dropped(bundle, file, kept):
    published = replace_files(bundle, file)
    assert published.manifest.exit_calibrations == kept
    assert Bundle.open(bundle.path).manifest == published.manifest


def test_they_are_dropped_before_the_file_is_replaced(bundle, monkeypatch):
    """As after a power cut."""
    import os

    real = os.replace

    def fails_for_graphs(source, target):
        if str(target).endswith(".onnx"):
            raise OSError("no power")
        real(source, target)

    monkeypatch.setattr(os, "replace", fails_for_graphs)
    with pytest.raises(BundleError, match="no power"):
        replace_files(bundle, "ee.fp16.onnx", "sac.fp16.onnx")
    assert Bundle.open(bundle.path).manifest.exit_calibrations == RECORDS[:1]
