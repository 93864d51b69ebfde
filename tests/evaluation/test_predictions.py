from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from sacvit_deploy.evaluation.answers import collect_answers
from sacvit_deploy.evaluation.evaluate import evaluate_answers
from sacvit_deploy.runtime.load import load
from sacvit_deploy.runtime.result_file import LABELLED_COLUMNS
from sacvit_deploy.samples import read_samples
from tests.evaluation.evaluations import SETTING, fake_answers, fake_evaluation, fake_pipeline
from tests.fakes import DENSE, SAC
from tests.labelled_pictures import write_pictures, zipped
from tests.tiny_models import GATED


@pytest.mark.parametrize("config", [SAC, DENSE], ids=["two stages", "one stage"])
def test_the_numbers_of_the_evaluation_follow_from_the_rows(config):
    found = fake_evaluation(config, etas=(0.4, 0.6))
    rows = [each.to_row() for each in found.predictions]
    assert len(rows) == len(found.predictions) == found.images
    assert all(tuple(row)[:9] == LABELLED_COLUMNS[:9] for row in rows)
    assert all(row["correct"] == (row["class_index"] == row["true_class_index"]) for row in rows)
    first = found.rows[0]
    assert np.mean([row["correct"] for row in rows]) == first.top1
    assert np.mean([row["stage"] == "early_exit" for row in rows]) == first.early_exit_fraction
    pairs = Counter((row["true_class_index"], row["class_index"]) for row in rows)
    assert pairs == {(each.true, each.predicted): each.images for each in found.confusions}
    assert {row["true_label"] for row in rows} <= set(found.labels)


@pytest.mark.parametrize(
    ("eta", "stages"),
    [(0.0, {"early_exit"}), (0.26, {"early_exit", "refine"}), (1.0, {"refine"})],
)
def test_each_row_is_what_run_gives(sac_host, tmp_path, eta, stages):
    labels = sac_host.manifest.labels[:3]
    data = read_samples(write_pictures(tmp_path / "data", labels, 6))
    with load(sac_host.path, decode="exact") as pipeline:
        answers = collect_answers(pipeline, data)
        wanted = pipeline([sample.name for sample in data.samples], eta=eta)
    found = evaluate_answers(pipeline, answers, SETTING, [eta])
    assert [each.result for each in found.predictions] == wanted
    assert {each.stage for each in wanted} == stages


def test_the_name_goes_through_the_archive(sac_host, tmp_path):
    archive = zipped(write_pictures(tmp_path / "data", sac_host.manifest.labels[:1], 2))
    with load(sac_host.path) as pipeline:
        answers = collect_answers(pipeline, read_samples(archive))
    first, _ = evaluate_answers(pipeline, answers, SETTING).predictions
    label = sac_host.manifest.labels[0]
    assert first.to_row()["image"] == f"{archive}/top/{label}/000.png"


def test_one_stage_has_no_early_exit():
    found = fake_evaluation(DENSE)
    for each in found.predictions:
        assert (each.result.stage, each.result.early_exit_probability) == ("single", None)
        assert "target_tokens" not in each.to_row()


def test_what_a_strict_network_computes_again_is_of_the_second_graph():
    config = GATED.replace(mode="capacity", capacity=(50,), strict=True)
    answers = fake_answers(config, images=2)
    masks = np.ones((2, 2, config.num_fine_tokens + 1), np.uint8)
    decisions = dataclasses.replace(answers.decisions, kept_mask=masks)
    answers = dataclasses.replace(
        answers, decisions=decisions, refine_ms=np.array([0.0, 2.0], np.float64)
    )
    found = evaluate_answers(fake_pipeline(config), answers, SETTING)
    assert [each.result.stage for each in found.predictions] == ["single", "refine"]
    kept = config.num_fine_tokens + 1
    assert found.predictions.prediction(0).result.kept_tokens == (kept, kept)


def test_the_surest_mistakes_come_first():
    found = fake_evaluation(images=60)
    mistakes = found.predictions.surest_mistakes(100)
    assert mistakes
    assert len(mistakes) == round(60 * (1 - found.rows[0].top1))
    assert not any(each.is_correct for each in mistakes)
    probabilities = [each.result.probability for each in mistakes]
    assert probabilities == sorted(probabilities, reverse=True)
    assert found.predictions.surest_mistakes(3) == mistakes[:3]


def test_where_all_is_right_there_is_no_mistake():
    answers = fake_answers()
    logits = answers.decisions.refined_logits.copy()
    logits[np.arange(len(logits)), answers.class_index] += 100
    decisions = dataclasses.replace(answers.decisions, early_logits=logits, refined_logits=logits)
    answers = dataclasses.replace(answers, decisions=decisions)
    found = evaluate_answers(fake_pipeline(), answers, SETTING)
    assert found.predictions.surest_mistakes(24) == ()
