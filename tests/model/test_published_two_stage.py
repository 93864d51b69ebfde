"""The networks compute what the code of LF-ViT's and CF-ViT's authors computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sacvit_deploy.model.two_stage import select_tokens
from tests.published import TWO_STAGE, Published

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=TWO_STAGE)
def published(request, shared, tmp_path_factory) -> Published:
    return Published.read(shared, request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def computed(published):
    model = published.model()
    image = torch.from_numpy(published.image)
    with torch.no_grad():
        result = model(image)
        sequence = model.refine_sequence(image, result.early_exit, result.selection)
    return result, sequence.numpy()


def test_in_double_precision_the_logits_are_theirs(published):
    image = torch.from_numpy(published.image).double()
    with torch.no_grad():
        result = published.model().double()(image)
    for found, key in (
        (result.early_exit.logits, "float64/coarse_logits"),
        (result.refined_logits, "float64/fine_logits"),
    ):
        np.testing.assert_allclose(found.numpy(), published[key], rtol=0, atol=1e-9)


def test_score_and_chosen_tokens(published, computed):
    early, selection = computed[0].early_exit, computed[0].selection
    wanted = published["global_class_attention"]
    np.testing.assert_allclose(early.score.numpy(), wanted, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(selection.target.numpy(), published.targets)
    for found, theirs in (
        (selection.non_target.numpy(), published.others),
        (selection.fine.numpy(), published["fine_index"]),
    ):
        np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(theirs, axis=1))


def test_what_enters_the_blocks(published, computed):
    result, sequence = computed
    early, selection = result.early_exit, result.selection
    fine = published.fine_sequence(selection.fine.numpy(), selection.non_target.numpy())
    for found, wanted in (
        (early.embeddings.numpy(), published["coarse_sequence_in"][:, 1:]),
        (early.features.numpy(), published["coarse_tokens_final_norm"][:, 1:]),
        (sequence, fine),
    ):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)


def test_logits_of_both_stages(published, computed):
    for found, key in (
        (computed[0].early_exit.logits, "coarse_logits"),
        (computed[0].refined_logits, "fine_logits"),
    ):
        np.testing.assert_allclose(found.numpy(), published[key], rtol=0, atol=TOLERANCE)


def test_with_all_tokens_refined(published, computed):
    """The first phase of training. The published DeiT classes forget the fine positions there."""
    model, early = published.model(), computed[0].early_exit
    forgotten = "warmup_logits_without_fine_positions"
    if forgotten in published.values:
        model.pos_embed_fine.data.zero_()
    everything = select_tokens(early.score, model.config, model.config.num_coarse_tokens)
    with torch.no_grad():
        found = model.refine(torch.from_numpy(published.image), early, everything)
    wanted = published.values.get(forgotten, published.values.get("all_fine_logits"))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=TOLERANCE)
