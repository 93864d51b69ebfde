"""The exported graphs and the orchestrator compute what the CF-ViT authors' own code computed."""

from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.runtime.algorithm import confidence, fine_index, select_tokens
from sacvit_deploy.runtime.load import load
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.spec import IMAGE, LOGITS, SCORE
from tests.exporters.graphs import session
from tests.tiny_models import GOLDEN_CF

TOLERANCE = 1e-4

TARGETS = 25


@pytest.fixture(scope="module")
def pipeline(golden_bundle) -> Pipeline:
    return load(golden_bundle.path, threads=1)


@pytest.fixture(scope="module")
def early(golden_bundle, golden):
    return session(golden_bundle, "early_exit").run({IMAGE: golden["image"]})


def test_score_and_first_stage(early, golden):
    wanted = golden["global_class_attention"]
    np.testing.assert_allclose(early[SCORE], wanted, rtol=0, atol=1e-7)
    np.testing.assert_allclose(early[LOGITS], golden["coarse_logits"], rtol=0, atol=TOLERANCE)


def test_what_the_first_stage_hands_on(early, golden):
    for name, key in (
        ("coarse_embeddings", "coarse_sequence_in"),
        ("coarse_features", "coarse_tokens_final_norm"),
    ):
        np.testing.assert_allclose(early[name], golden[key][:, 1:], rtol=0, atol=TOLERANCE)


def test_selected_set_and_order(early, golden):
    target, other = select_tokens(early[SCORE], GOLDEN_CF)
    wanted = golden["score_order"]
    np.testing.assert_array_equal(np.sort(target, axis=1), np.sort(wanted[:, :TARGETS], axis=1))
    np.testing.assert_array_equal(np.concatenate([target, other], axis=1), wanted)


def test_second_stage_alone(early, golden, golden_bundle):
    target, other = select_tokens(golden["global_class_attention"], GOLDEN_CF)
    feeds = {name: early[name] for name in ("coarse_embeddings", "coarse_features")}
    feeds |= {
        IMAGE: golden["image"],
        "target_index": target,
        "non_target_index": other,
        "fine_index": fine_index(target, 7),
    }
    found = session(golden_bundle, "refine").run(feeds)[LOGITS]
    np.testing.assert_allclose(found, golden["fine_logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rows", [[0], [1], [0, 1], [1, 0, 1]])
def test_the_orchestrator_refines_every_picture(pipeline, golden, rows):
    outcomes = pipeline.outcomes(golden["image"][rows], 1.0)
    found = np.stack([outcome.logits for outcome in outcomes])
    np.testing.assert_allclose(found, golden["fine_logits"][rows], rtol=0, atol=TOLERANCE)
    for outcome, row in zip(outcomes, rows, strict=True):
        np.testing.assert_array_equal(outcome.target_index, golden["score_order"][row, :TARGETS])


def test_the_surer_picture_leaves_and_the_other_is_refined(pipeline, golden):
    sure = confidence(golden["coarse_logits"])
    easy, hard = int(sure.argmax()), int(sure.argmin())
    outcomes = pipeline.outcomes(golden["image"], float(sure.mean()))
    assert outcomes[easy].target_index is None
    assert outcomes[hard].target_index is not None
    for row, key in ((easy, "coarse_logits"), (hard, "fine_logits")):
        np.testing.assert_allclose(outcomes[row].logits, golden[key][row], rtol=0, atol=TOLERANCE)
