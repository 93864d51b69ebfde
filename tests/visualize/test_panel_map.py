from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.runtime.load import load
from sacvit_deploy.samples import sample_pictures
from sacvit_deploy.visualize.panel_map import panel_map

PICTURES = sample_pictures()[:2]


def test_each_semantic_token_has_a_panel_of_what_it_takes(semantic_bundle):
    with load(semantic_bundle.path, threads=1) as pipeline:
        sheet = panel_map(pipeline, PICTURES)
        images = np.stack([pipeline.preprocess(picture) for picture in PICTURES])
        outcomes = pipeline.outcomes(images)
    config = semantic_bundle.manifest.config
    assert "semantic token" in sheet.title
    assert "STViT" in sheet.note
    for look, outcome in zip(sheet.looks, outcomes, strict=True):
        assert outcome.semantic_attention is not None
        assert len(look.panels) == config.semantic_tokens.tokens
        for panel, shares in zip(look.panels, outcome.semantic_attention, strict=True):
            assert panel.light.shape == config.fine_grid
            assert panel.light.max() == 1
            np.testing.assert_array_equal(panel.light.ravel().argsort(), shares.argsort())


def test_each_gate_has_a_panel_of_what_it_keeps(gated_bundle):
    with load(gated_bundle.path, threads=1) as pipeline:
        sheet = panel_map(pipeline, PICTURES[:1])
        (outcome,) = pipeline.outcomes(pipeline.preprocess(PICTURES[0])[None])
    config = gated_bundle.manifest.config
    (look,) = sheet.looks
    assert outcome.kept is not None
    assert outcome.kept_mask is not None
    first = config.gating.first_block + 1
    for number, (panel, count) in enumerate(zip(look.panels, outcome.kept, strict=True)):
        tokens = 1 + config.num_fine_tokens
        assert panel.title == f"block {first + number}: {count} of {tokens}"
        kept = outcome.kept_mask[number, 1:].reshape(config.fine_grid)
        np.testing.assert_array_equal(panel.light, kept)
    assert look.result.label == gated_bundle.manifest.labels[int(outcome.logits.argmax())]


def test_a_network_without_parts_says_what_has_some(dense_bundle, semantic_bundle):
    with load(dense_bundle.path, threads=1) as pipeline, pytest.raises(ConfigError, match="SViT"):
        panel_map(pipeline, PICTURES)
    with load(semantic_bundle.path) as pipeline, pytest.raises(ConfigError, match="no picture"):
        panel_map(pipeline, [])
