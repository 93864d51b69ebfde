from __future__ import annotations

import json
from datetime import datetime, timezone

import numpy as np
import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.evaluation.evaluate import (
    CURVE_ETAS,
    EvaluationRequest,
    evaluate_answers,
    run_evaluation,
)
from sacvit_deploy.evaluation.statistics import share_interval
from sacvit_deploy.records import ExitCalibration
from sacvit_deploy.runtime.algorithm import confidence
from tests.evaluation.evaluations import SETTING, fake_answers, fake_evaluation, fake_pipeline
from tests.fakes import DENSE, SAC
from tests.labelled_pictures import write_pictures

CONTRACT = {
    "top1",
    "early_exit_fraction",
    "refine_fraction",
    "top1_early_exit_only",
    "top1_refine_only",
    "macs_mean_g",
    "images",
    "eta",
}


def test_each_threshold_is_the_mixture_it_says():
    answers = fake_answers()
    found = fake_evaluation(etas=(0.0, 0.3, 0.6, 1.0))
    early = answers.decisions.early_logits.argmax(1)
    late = answers.decisions.refined_logits.argmax(1)
    confidences = confidence(answers.decisions.early_logits)
    for row, eta in zip(found.rows, (0.0, 0.3, 0.6, 1.0), strict=True):
        assert row.eta == eta
        leaves = (confidences > eta) & (eta < 1)
        correct = np.where(leaves, early, late) == answers.class_index
        assert row.top1 == correct.mean()
        assert row.early_exit_fraction == leaves.mean()
        assert row.early_right_fraction == (leaves & correct).mean()
        wanted = found.macs_g["early_exit"] + (1 - leaves.mean()) * found.macs_g["refine"]
        assert row.macs_mean_g == pytest.approx(wanted)
        ms = answers.early_ms + np.where(leaves, 0, answers.refine_ms)
        assert row.latency_ms_mean == pytest.approx(ms.mean())
        assert row.latency_ms_p50 == pytest.approx(np.percentile(ms, 50))
        assert row.latency_ms_p95 == pytest.approx(np.percentile(ms, 95))
    values = found.to_dict()
    assert values["rows"][0]["top1"] == values["rows"][0]["top1_early_exit_only"]
    assert values["rows"][-1]["top1"] == values["rows"][-1]["top1_refine_only"]
    assert found.rows[-1].latency_ms() == values["late_path"]
    assert values["rows"][0]["top1_early_exit_only"] == (early == answers.class_index).mean()
    assert values["rows"][0]["top1_refine_only"] == (late == answers.class_index).mean()
    assert values["early_path"]["latency_ms_mean"] == pytest.approx(answers.early_ms.mean())


def test_the_curve_goes_from_one_stage_to_the_other():
    found = fake_evaluation()
    assert [point.eta for point in found.curve] == list(CURVE_ETAS)
    assert found.curve[0].early_exit_fraction == 1
    assert found.curve[-1].early_exit_fraction == 0
    macs = [point.macs_mean_g for point in found.curve]
    assert macs == sorted(macs)


def test_classes_and_confusions_add_up():
    found = fake_evaluation()
    assert sum(row.images for row in found.classes) == found.images == 40
    correct = sum(row.images * row.top1 for row in found.classes)
    assert correct / 40 == pytest.approx(found.rows[0].top1)
    same = sum(entry.images for entry in found.confusions if entry.true == entry.predicted)
    assert same == pytest.approx(correct)
    assert sum(entry.images for entry in found.confusions) == 40


def test_the_document_of_one_threshold_is_that_of_the_contract():
    values = json.loads(json.dumps(fake_evaluation(etas=(0.4,)).to_dict(), allow_nan=False))
    assert set(values) >= CONTRACT
    assert "rows" not in values
    assert (values["eta"], values["eta_source"], values["images"]) == (0.4, "given", 40)
    assert values["refine_fraction"] == 1 - values["early_exit_fraction"]
    assert values["skipped"] == [{"name": "bad.png", "reason": "It is <empty>."}]
    assert values["top1_interval"] == list(share_interval(values["top1"], 40))
    for each in values["reliability"]:
        assert each["accuracy_interval"] == list(share_interval(each["accuracy"], each["images"]))
    assert values["ece"] > 0
    assert {"data_sha256", "precision", "runtime", "device", "versions"} <= set(values)


def test_several_thresholds_are_rows():
    values = fake_evaluation(etas=(0.4, 0.6)).to_dict()
    assert [row["eta"] for row in values["rows"]] == [0.4, 0.6]
    assert all(set(row) >= CONTRACT for row in values["rows"])
    assert not (CONTRACT - {"images"}) & set(values)


def test_one_stage_has_no_threshold():
    found = fake_evaluation(DENSE, etas=(0.4, 0.6))
    (row,) = found.rows
    assert row.source is None
    assert len(found.curve) == 1
    assert set(found.macs_g) == {"single", "dense"}
    values = json.loads(json.dumps(found.to_dict()))
    assert set(values) >= CONTRACT
    assert values["eta"] is values["early_exit_fraction"] is values["late_path"] is None
    assert values["top1"] == row.top1


def calibration(precision, eta, temperature) -> ExitCalibration:
    bins = (1.0,) + (0.0,) * 19
    return ExitCalibration(
        precision=precision,
        runtime="onnxruntime",
        eta=eta,
        temperature=temperature,
        goal="any",
        images=10,
        data_sha256="0",
        top1=0.5,
        top1_interval=(0.4, 0.6),
        macs_mean_g=1.0,
        early_exit_fraction=0.5,
        confidence_histogram=bins,
        curve=(),
    )


@pytest.mark.parametrize("full", [None, calibration("fp32", 0.7, 1.5)], ids=["bundle", "own"])
def test_int8_shows_the_threshold_of_fp32_beside_its_own(full):
    records = [calibration("int8", 0.3, 2.0), *([full] if full else [])]
    pipeline = fake_pipeline(SAC, 0.6, records, "int8")
    found = evaluate_answers(pipeline, fake_answers(), SETTING)
    seen = [(row.source, row.eta, row.temperature) for row in found.rows]
    assert seen == [("calibrated", 0.3, 2.0), ("fp32", *((0.7, 1.5) if full else (0.6, 1.0)))]
    values = found.to_dict()
    assert (values["eta"], values["eta_source"]) == (0.3, "calibrated")
    assert [row["eta_source"] for row in values["rows"]] == ["calibrated", "fp32"]
    given = evaluate_answers(pipeline, fake_answers(), SETTING, [0.9])
    assert [row.source for row in given.rows] == ["given"]


def test_fp32_has_one_row_of_its_own():
    for records, source, eta in (
        ([], "bundle", 0.6),
        ([calibration("fp32", 0.7, 1.5)], "calibrated", 0.7),
    ):
        pipeline = fake_pipeline(SAC, 0.6, records)
        (found,) = evaluate_answers(pipeline, fake_answers(), SETTING).rows
        assert (found.source, found.eta) == (source, eta)


def test_a_bundle_on_a_folder(sac_host, tmp_path):
    labels = list(sac_host.manifest.labels[:3])
    data = write_pictures(tmp_path / "data", labels, 2 * len(labels))
    found = run_evaluation(EvaluationRequest(sac_host.path, data, (0.0, 1.0)))
    assert found.images == 6
    assert found.rows[0].top1 == found.early_alone.top1
    assert found.setting.runtime == "onnxruntime"
    assert "onnxruntime" in found.setting.versions


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_a_threshold_out_of_range_is_refused_before_any_work(eta, tmp_path):
    with pytest.raises(ConfigError, match="eta"):
        EvaluationRequest(tmp_path, tmp_path, (0.5, eta))


def test_a_limit_takes_pictures_of_all_classes(sac_host, tmp_path):
    labels = list(sac_host.manifest.labels[:3])
    folder = write_pictures(tmp_path / "data", labels, 12)
    request = EvaluationRequest(sac_host.path, folder, limit=6, batch_size=4, threads=1)
    found = run_evaluation(request)
    assert found.images == 6
    assert [row.images for row in found.classes] == [2, 2, 2]
    assert (found.setting.batch_size, found.setting.threads) == (4, 1)
    assert found.to_dict()["date"] == datetime.now(timezone.utc).date().isoformat()
    assert found.rows[0].top1 <= found.to_dict()["top5"] <= 1
    with pytest.raises(ConfigError, match="limit"):
        EvaluationRequest(sac_host.path, folder, limit=0)
