from __future__ import annotations

import pytest
import torch
from torch import nn

from sacvit_deploy.model.adapter import ConvMlp, Extractor, Interaction, SpatialPrior
from sacvit_deploy.model.build import random_model
from sacvit_deploy.model.svit_adapter import SelectiveAdapter
from tests.tiny_models import ADAPTED


@pytest.fixture(scope="module")
def model() -> SelectiveAdapter:
    made = random_model(ADAPTED, 3)
    assert isinstance(made, SelectiveAdapter)
    return made.double()


@torch.no_grad()
def test_the_prior_halves_the_picture_again_and_again(model):
    pictures = model.spm(torch.randn(2, 3, 64, 96, dtype=torch.float64))
    sizes = [(24, 16, 24), (24, 8, 12), (24, 4, 6), (24, 2, 3)]
    assert [tuple(picture.shape[1:]) for picture in pictures] == sizes


@torch.no_grad()
def test_the_folded_prior_has_no_norm_and_computes_the_same(model):
    spm = SpatialPrior(ADAPTED).double().eval()
    spm.load_state_dict(model.spm.state_dict())
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    first, *wanted = model.spm(image)
    levels = torch.randn(3, 24, dtype=torch.float64)
    spm.fold(levels)
    found = spm(image)
    torch.testing.assert_close(found[0], first)
    for picture, plain, level in zip(found[1:], wanted, levels, strict=True):
        torch.testing.assert_close(picture, plain + level[:, None, None])
    assert sum(isinstance(module, nn.Identity) for module in spm.modules()) == 6


@torch.no_grad()
def test_the_convolution_of_the_mlp_stays_in_each_picture():
    mlp = ConvMlp(6, 4, ((2, 3), (1, 2))).eval()
    x = torch.randn(1, 8, 6)
    changed = x.clone()
    changed[:, :6] += 1
    before, after = mlp(x), mlp(changed)
    assert not torch.equal(before[:, :6], after[:, :6])
    torch.testing.assert_close(before[:, 6:], after[:, 6:], rtol=0, atol=0)


@torch.no_grad()
def test_tokens_are_injected_by_gamma(model):
    injector = model.interactions[0].injector
    tokens = torch.randn(1, 24, 24, dtype=torch.float64)
    cells = torch.randn(1, 96 + 24 + 6, 24, dtype=torch.float64)
    added = injector(tokens, cells) - tokens
    gamma = injector.gamma.clone()
    injector.gamma.mul_(2)
    torch.testing.assert_close(injector(tokens, cells) - tokens, 2 * added)
    injector.gamma.copy_(gamma)


def test_only_the_last_interaction_extracts_three_times():
    counts = [
        sum(isinstance(module, Extractor) for module in Interaction(ADAPTED, last=last).modules())
        for last in (False, True)
    ]
    assert counts == [1, 3]
