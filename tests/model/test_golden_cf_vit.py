"""The network in CF-ViT's configuration computes what the CF-ViT authors' own code computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sacvit_deploy.model.checkpoints import Checkpoint
from sacvit_deploy.model.two_stage import TwoStageViT

TOLERANCE = 2e-5
TARGETS = 25


@pytest.fixture(scope="module")
def computed(golden, golden_checkpoint, golden_config):
    """The reference forward, its weights read the way a released CF-ViT file is read."""
    model = Checkpoint.read(golden_checkpoint).model(golden_config)
    assert isinstance(model, TwoStageViT)
    image = torch.from_numpy(golden["image"])
    with torch.no_grad():
        result = model(image)
        sequence = model.refine_sequence(image, result.early_exit, result.selection)
    return result, sequence


def test_score(computed, golden):
    score = computed[0].early_exit.score.numpy()
    np.testing.assert_allclose(score, golden["global_class_attention"], rtol=0, atol=1e-7)


def test_selected_set_and_order(computed, golden):
    selection = computed[0].selection
    order = torch.cat([selection.target, selection.non_target], dim=1).numpy()
    wanted = golden["score_order"]
    np.testing.assert_array_equal(
        np.sort(order[:, :TARGETS], axis=1), np.sort(wanted[:, :TARGETS], axis=1)
    )
    np.testing.assert_array_equal(order, wanted)


def test_coarse_sequence(computed, golden):
    early = computed[0].early_exit
    wanted = golden["coarse_sequence_in"][:, 1:]
    np.testing.assert_allclose(early.embeddings.numpy(), wanted, rtol=0, atol=TOLERANCE)
    wanted = golden["coarse_tokens_final_norm"][:, 1:]
    np.testing.assert_allclose(early.features.numpy(), wanted, rtol=0, atol=TOLERANCE)


def test_fine_sequence(computed, golden):
    sequence, wanted = computed[1].numpy(), golden["fine_sequence_in"]
    batch, _, width = wanted.shape
    quadrant_major = wanted[:, 1 : 1 + 4 * TARGETS].reshape(batch, 4, TARGETS, width)
    target_major = quadrant_major.transpose(0, 2, 1, 3).reshape(batch, 4 * TARGETS, width)
    ordered = np.concatenate([wanted[:, :1], target_major, wanted[:, 1 + 4 * TARGETS :]], axis=1)
    np.testing.assert_allclose(sequence, ordered, rtol=0, atol=TOLERANCE)


def test_logits_of_both_stages(computed, golden):
    result = computed[0]
    np.testing.assert_allclose(
        result.early_exit.logits.numpy(), golden["coarse_logits"], rtol=0, atol=TOLERANCE
    )
    np.testing.assert_allclose(
        result.refined_logits.numpy(), golden["fine_logits"], rtol=0, atol=TOLERANCE
    )
