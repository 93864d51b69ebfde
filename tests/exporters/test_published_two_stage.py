"""Exported graphs and the orchestrator compute what the authors of LF-ViT and CF-ViT computed."""

from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.runtime.algorithm import confidence
from sacvit_deploy.runtime.load import load
from sacvit_deploy.runtime.pipeline import Pipeline
from tests.published import TWO_STAGE, Published

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=TWO_STAGE)
def published(request, shared, tmp_path_factory) -> Published:
    return Published.read(shared, request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["host", "graph"])
def pipeline(request, published, made_once) -> Pipeline:
    options = ExportOptions(published.config, selection=request.param)
    name = f"{published.name}_{request.param}"
    bundle = made_once(name, lambda path: export_bundle(published.checkpoint, path, options))
    return load(bundle.path, threads=1)


def thresholds(published: Published) -> dict[str, float]:
    """Exits at which all leave, some leave and none leaves."""
    between = float(confidence(published["coarse_logits"]).mean())
    return {"all": 0.0, "some": between, "none": 1.0}


@pytest.mark.parametrize("leave", ["all", "some", "none"])
def test_the_answers_are_theirs_whoever_leaves(pipeline, published, leave):
    eta = thresholds(published)[leave]
    stays = confidence(published["coarse_logits"]) < eta
    assert {"all": not stays.any(), "none": stays.all(), "some": len(set(stays)) == 2}[leave]
    outcomes = pipeline.outcomes(published.image, eta)
    wanted = np.where(stays[:, None], published["fine_logits"], published["coarse_logits"])
    found = np.stack([outcome.logits for outcome in outcomes])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)
    for row, outcome in enumerate(outcomes):
        if stays[row]:
            np.testing.assert_array_equal(outcome.target_index, published.targets[row])
        else:
            assert outcome.target_index is None


def test_their_own_threshold_gives_their_answers(pipeline, published):
    outcomes = pipeline.outcomes(published.image, float(published["early_exit_threshold"]))
    found = np.stack([outcome.logits for outcome in outcomes])
    np.testing.assert_allclose(found, published["early_exit_logits"], rtol=0, atol=TOLERANCE)
