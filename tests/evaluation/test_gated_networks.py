"""Cost and kept tokens of networks with gates, from the answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sacvit_deploy.evaluation.evaluate import evaluate_answers
from sacvit_deploy.families.config import graph_macs
from sacvit_deploy.families.svit import gated_macs
from tests.evaluation.evaluations import SETTING, fake_answers, fake_pipeline
from tests.tiny_models import GATED

TOKENS = GATED.num_fine_tokens + 1


def evaluated(config, counts, refine_ms=0.0):
    """Pictures of which the two gates keep these counts."""
    answers = fake_answers(config, images=len(counts))
    masks = np.arange(TOKENS) < np.array(counts)[..., None]
    decisions = dataclasses.replace(answers.decisions, kept_mask=masks.astype(np.uint8))
    answers = dataclasses.replace(
        answers, decisions=decisions, refine_ms=np.resize(refine_ms, len(counts))
    )
    return evaluate_answers(fake_pipeline(config), answers, SETTING)


def test_the_cost_is_that_of_the_kept_tokens():
    config = GATED.replace(mode="exact")
    counts = [(50, 10), (90, 0), (50, 10)]
    found = evaluated(config, counts)
    wanted = sum(gated_macs(config, each) for each in counts) / 3e9
    assert found.rows[0].macs_mean_g == pytest.approx(wanted)
    assert found.kept_tokens_mean == pytest.approx((190 / 3, 20 / 3))
    assert found.to_dict()["kept_tokens_mean"] == pytest.approx([190 / 3, 20 / 3])


def test_fixed_shapes_cost_the_same_whatever_is_kept():
    found = evaluated(GATED, [(50, 10), (90, 0)])
    assert found.rows[0].macs_mean_g == pytest.approx(graph_macs(GATED)["single"] / 1e9)


def test_what_is_computed_again_costs_more():
    config = GATED.replace(mode="capacity", capacity=(50,), strict=True)
    found = evaluated(config, [(50, 10), (90, 0), (9, 9), (8, 8)], [0.0, 2.0, 0.0, 0.0])
    macs = graph_macs(config)
    wanted = (macs["single"] + macs["refine"] / 4) / 1e9
    assert found.rows[0].macs_mean_g == pytest.approx(wanted)
