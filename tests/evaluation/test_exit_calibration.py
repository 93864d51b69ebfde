from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.bundle_changes import update_manifest
from sacvit_deploy.errors import (
    BundleError,
    BundleIntegrityError,
    ConfigError,
    DataError,
    GoalError,
)
from sacvit_deploy.evaluation import exit_calibration
from sacvit_deploy.evaluation.evaluate import EvaluationRequest, run_evaluation
from sacvit_deploy.evaluation.exit_calibration import CalibrationRequest, calibrate_bundle
from sacvit_deploy.evaluation.exit_threshold import ExitGoal, ThresholdSearch
from sacvit_deploy.files import FileRecord, folder_lock
from sacvit_deploy.manifest import MANIFEST
from sacvit_deploy.records import WeightsOrigin
from sacvit_deploy.runtime.load import load
from tests.exit_records import exit_record
from tests.labelled_pictures import write_pictures

COUNT = 60


@pytest.fixture(scope="module")
def data(sac_host, tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data"), sac_host.manifest.labels, COUNT)


@pytest.fixture
def bundle(sac_host, tmp_path) -> Path:
    path: Path = tmp_path / "bundle"
    shutil.copytree(sac_host.path, path)
    return path


def request(goal: ExitGoal | None = None, **fields) -> CalibrationRequest:
    search = ThresholdSearch(goal or ExitGoal("target_exit_fraction", 0.5), resamples=100)
    return CalibrationRequest(dataclasses.replace(search, **fields))


def test_the_threshold_is_in_the_bundle_and_does_what_was_found(bundle, data):
    shares = []
    found = calibrate_bundle(bundle, data, request(), lambda share, what: shares.append(share))
    assert shares[-1] == 1
    assert (found.precision, found.backend, found.written) == ("fp32", "onnxruntime", True)
    chosen = found.calibration.chosen
    manifest = Bundle.open(bundle).manifest
    assert manifest.eta == chosen.eta
    assert manifest.exit_calibrations == (found.calibration.record("fp32", "onnxruntime"),)
    pipeline = load(bundle)
    assert (pipeline.eta, pipeline.temperature) == (chosen.eta, 1.0)
    pictures = sorted(data.rglob("*.png"))
    results = pipeline(pictures)
    early = [result.stage == "early_exit" for result in results]
    assert sum(early) / COUNT == chosen.early_exit_fraction
    assert 0 < sum(early) < COUNT
    correct = [
        result.label == path.parent.name for result, path in zip(results, pictures, strict=True)
    ]
    assert sum(correct) / COUNT == pytest.approx(chosen.top1)


def test_a_temperature_comes_with_the_threshold(bundle, data):
    eta = Bundle.open(bundle).manifest.eta
    found = calibrate_bundle(bundle, data, request(temperature_scaling=True)).calibration
    assert found.temperature != 1
    pipeline = load(bundle)
    assert (pipeline.eta, pipeline.temperature) == (found.chosen.eta, found.temperature)
    assert Bundle.open(bundle).manifest.eta == eta
    early = [r.stage == "early_exit" for r in pipeline(sorted(data.rglob("*.png")))]
    assert sum(early) / COUNT == found.chosen.early_exit_fraction


def test_the_document_names_the_graphs(bundle, data):
    values = calibrate_bundle(bundle, data, request()).to_dict()
    assert next(iter(values)) == "eta"
    assert list(values)[-1] == "curve"
    assert (values["precision"], values["runtime"]) == ("fp32", "onnxruntime")


def test_the_bundle_knows_how_many_pictures_a_latency_is_of(bundle, data):
    calibrate_bundle(bundle, data, dataclasses.replace(request(), batch_size=4))
    (record,) = Bundle.open(bundle).manifest.exit_calibrations
    assert record.batch_size == 4


def test_a_dry_run_leaves_the_bundle_as_it_is(bundle, data):
    before = (bundle / MANIFEST).read_bytes()
    asked = dataclasses.replace(request(), write=False)
    assert not calibrate_bundle(bundle, data, asked).written
    assert (bundle / MANIFEST).read_bytes() == before


def test_a_goal_that_cannot_be_met_leaves_the_bundle_as_it_is(bundle, data):
    before = (bundle / MANIFEST).read_bytes()
    with pytest.raises(GoalError, match="The nearest is eta 0"):
        calibrate_bundle(bundle, data, request(ExitGoal("target_macs", 1e-9)))
    assert (bundle / MANIFEST).read_bytes() == before


def unmeasured(*arguments, **named):
    raise AssertionError("it should have been refused before the long work")


def test_one_stage_has_no_exit(dense_bundle, data, monkeypatch):
    monkeypatch.setattr(exit_calibration, "collect_answers", unmeasured)
    with pytest.raises(ConfigError, match="one stage"):
        calibrate_bundle(dense_bundle.path, data, request())


def test_too_few_pictures_are_refused_at_once(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(exit_calibration, "collect_answers", unmeasured)
    few = write_pictures(tmp_path / "few", Bundle.open(bundle).manifest.labels, 20)
    with pytest.raises(DataError, match="20 pictures"):
        calibrate_bundle(bundle, few, request())


def test_a_bundle_that_cannot_be_written_is_refused_at_once(bundle, data, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with monkeypatch.context() as inner:
        inner.setattr(exit_calibration, "collect_answers", unmeasured)
        with pytest.raises(BundleError, match="--dry-run"):
            calibrate_bundle(bundle, data, request())
    calibrate_bundle(bundle, data, dataclasses.replace(request(), write=False))


def while_it_measures(monkeypatch, action) -> None:
    real = vars(exit_calibration)["collect_answers"]

    def collect(*arguments, **named):
        answers = real(*arguments, **named)
        action()
        return answers

    monkeypatch.setattr(exit_calibration, "collect_answers", collect)


def test_what_came_to_the_bundle_meanwhile_stays(bundle, data, monkeypatch):
    def add() -> None:
        opened = Bundle.open(bundle)
        update_manifest(
            opened, dataclasses.replace(opened.manifest, weights=WeightsOrigin("elsewhere"))
        )

    while_it_measures(monkeypatch, add)
    calibrate_bundle(bundle, data, request())
    manifest = Bundle.open(bundle).manifest
    assert manifest.weights == WeightsOrigin("elsewhere")
    assert len(manifest.exit_calibrations) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_nobody_else_changes_the_bundle_while_it_is_written(bundle, data, monkeypatch):
    def watched(opened, manifest):
        with folder_lock(opened.path, wait=False) as is_free:
            assert not is_free
        return update_manifest(opened, manifest)

    monkeypatch.setattr(exit_calibration, "update_manifest", watched)
    calibrate_bundle(bundle, data, request())
    assert len(Bundle.open(bundle).manifest.exit_calibrations) == 1


def test_graphs_that_changed_meanwhile_get_no_threshold(bundle, data, monkeypatch):
    opened = Bundle.open(bundle)

    def change() -> None:
        (bundle / "ee.onnx").write_bytes(b"other")
        files = {**opened.manifest.files, "ee.onnx": FileRecord.of(bundle / "ee.onnx")}
        update_manifest(opened, dataclasses.replace(opened.manifest, files=files))

    while_it_measures(monkeypatch, change)
    with pytest.raises(BundleIntegrityError, match=r"changed while it was measured: ee\.onnx"):
        calibrate_bundle(bundle, data, request())
    assert json.loads((bundle / MANIFEST).read_text())["exit_calibrations"] == []


def test_the_records_of_others_stay(bundle, data):
    opened = Bundle.open(bundle)
    other = exit_record(runtime="tensorrt")
    update_manifest(opened, opened.manifest.with_calibration(other))
    calibrate_bundle(bundle, data, request())
    assert other in Bundle.open(bundle).manifest.exit_calibrations


class _SeenError(Exception):
    """Ends the work when the pipeline is open."""


@pytest.mark.parametrize("decode", [None, "exact", "fast"])
def test_pictures_are_read_as_in_training_unless_asked_otherwise(bundle, data, decode):
    opened = []

    def see(pipeline):
        opened.append(pipeline.preprocess.decode)
        raise _SeenError

    asked = {} if decode is None else {"decode": decode}
    with pytest.raises(_SeenError):
        run_evaluation(EvaluationRequest(bundle, data, **asked), on_open=see)
    with pytest.raises(_SeenError):
        calibrate_bundle(bundle, data, request(), on_open=see)
    assert opened == [decode or "exact", "exact"]
