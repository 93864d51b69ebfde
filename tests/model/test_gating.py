from __future__ import annotations

import pytest
import torch

from sacvit_deploy.model.gating import (
    Gate,
    choose_all,
    choose_exact,
    choose_most_certain,
    sample_kept,
    update_sampled,
    update_tokens,
)
from sacvit_deploy.model.vit import Block
from tests.tiny_models import DENSE

LENGTH, WIDTH = 11, DENSE.embed_dim


@pytest.fixture(scope="module")
def block() -> Block:
    torch.manual_seed(3)
    return Block(DENSE).double().eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(2, LENGTH, WIDTH, dtype=torch.float64, generator=_draws(1))


@pytest.fixture
def margin() -> torch.Tensor:
    return torch.randn(2, LENGTH, dtype=torch.float64, generator=_draws(2))


def _draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def by_hand(block: Block, x: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
    """Equation 1, picture by picture: the block on the kept tokens, the others unchanged."""
    result = x.clone()
    for row, kept in enumerate(margin > 0):
        result[row, kept] = block(x[row : row + 1, kept])[0]
    return result


def test_every_way_computes_equation_1(block, tokens, margin):
    wanted = by_hand(block, tokens, margin)
    assert not torch.equal(wanted, tokens)
    most = int((margin > 0).sum(1).max())
    with torch.no_grad():
        for chosen in (
            choose_all(tokens, margin),
            choose_most_certain(tokens, margin, most),
            choose_most_certain(tokens, margin, LENGTH),
        ):
            torch.testing.assert_close(update_tokens(block, tokens, chosen), wanted)
        for row in (slice(0, 1), slice(1, 2)):
            found = update_tokens(block, tokens[row], choose_exact(tokens[row], margin[row]))
            torch.testing.assert_close(found, wanted[row])


def test_beyond_the_capacity_the_most_certain_are_kept(block, tokens, margin):
    count = int((margin > 0).sum(1).min()) - 1
    limit = margin.sort(1, descending=True).values[:, count - 1 : count]
    wanted = by_hand(block, tokens, torch.where(margin >= limit, margin, -1.0))
    with torch.no_grad():
        found = update_tokens(block, tokens, choose_most_certain(tokens, margin, count))
    torch.testing.assert_close(found, wanted)


def test_if_nothing_is_kept_nothing_changes(block, tokens):
    nothing = torch.full((2, LENGTH), -1.0, dtype=torch.float64)
    one = tokens[:1]
    with torch.no_grad():
        for x, chosen in (
            (tokens, choose_all(tokens, nothing)),
            (tokens, choose_most_certain(tokens, nothing, 4)),
            (one, choose_exact(one, nothing[:1])),
        ):
            assert torch.equal(update_tokens(block, x, chosen), x)


def test_a_new_gate_keeps_everything(tokens):
    torch.manual_seed(0)
    gate = Gate(WIDTH, 1e-5).double()
    gate.reset_parameters()
    assert (gate(tokens) > 0.5).all()


def test_samples_follow_the_margin_and_have_its_gradient():
    """The keeping score wins against Gumbel noise with the probability of a softmax."""
    torch.manual_seed(0)
    margin = torch.tensor([-2.0, 0.0, 1.0]).repeat(40_000, 1).requires_grad_()
    kept = sample_kept(margin)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(
        kept.mean(0), torch.sigmoid(torch.tensor([-2.0, 0.0, 1.0])), atol=0.01, rtol=0
    )
    kept.sum().backward()
    assert margin.grad is not None
    assert bool((margin.grad > 0).all())


def test_in_training_the_gradient_reaches_the_decisions(block, tokens, margin):
    decisions = (margin > 0).double().requires_grad_()
    found = update_sampled(block, tokens, decisions)
    torch.testing.assert_close(found, by_hand(block, tokens, margin))
    found.square().sum().backward()
    assert decisions.grad is not None
    assert bool((decisions.grad != 0).all())
