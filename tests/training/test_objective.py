from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.vision_model import Answers
from sacvit_deploy.model.vit import Backbone
from sacvit_deploy.training.config import LossConfig
from sacvit_deploy.training.objective import (
    StagedForward,
    add_drop_path,
    divergence,
    kept_distance,
    recipe_loss,
    smooth_targets,
)
from tests.training.conftest import TINY, TINY_CF_LV, TINY_GATED, TINY_LF


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 5, generator=generator, requires_grad=True) for _ in range(3)]


LABELS = torch.tensor([0, 4, 2, 2])


def test_smoothing_agrees_with_torch(logits):
    answer, *_ = logits
    losses = recipe_loss(Answers(answer, None), smooth_targets(LABELS, 5, 0.1), LossConfig())
    expected = functional.cross_entropy(answer, LABELS, label_smoothing=0.1)
    torch.testing.assert_close(losses.total, expected)
    assert losses.early_exit == losses.teacher == 0


def test_the_papers_loss(logits):
    answer, early, _ = logits
    losses = recipe_loss(Answers(answer, early), smooth_targets(LABELS, 5, 0.0), LossConfig())
    p = answer.softmax(1)
    kl = (p * (p.log() - early.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(losses.early_exit, kl)
    torch.testing.assert_close(losses.total, functional.cross_entropy(answer, LABELS) + kl)


def test_the_first_stage_does_not_teach_the_second(logits):
    answer, early, _ = logits
    divergence(answer, early).backward()
    assert answer.grad is None
    assert early.grad.abs().sum() > 0


def test_cross_entropy_for_the_first_stage(logits):
    answer, early, _ = logits
    target = smooth_targets(LABELS, 5, 0.0)
    losses = recipe_loss(Answers(answer, early), target, LossConfig(early_exit="ce"))
    torch.testing.assert_close(losses.early_exit, functional.cross_entropy(early, LABELS))


def test_a_teacher_takes_its_share(logits):
    answer, _, teacher = logits
    target = smooth_targets(LABELS, 5, 0.0)
    config = LossConfig(teacher_weight=0.25, teacher_temperature=2.0)
    losses = recipe_loss(Answers(answer, None), target, config, teacher)
    expected = 0.75 * losses.target + 0.25 * divergence(teacher, answer, 2.0)
    torch.testing.assert_close(losses.total, expected)


def test_the_share_of_kept_tokens_joins_the_loss(logits):
    """SViT, equation 2: nine gates are to keep 70, 49 and 34.3 %, three each."""
    kept = torch.tensor([0.7, 0.6, 0.7, 0.49, 0.49, 0.49, 0.343, 0.343, 0.643], requires_grad=True)
    target = smooth_targets(LABELS, 5, 0.0)
    losses = recipe_loss(Answers(logits[0], kept=kept), target, LossConfig())
    torch.testing.assert_close(losses.kept, torch.tensor((0.1**2 + 0.3**2) / 9))
    torch.testing.assert_close(losses.total, losses.target + 4 * losses.kept)
    losses.total.backward()
    assert kept.grad is not None
    assert kept.grad[1].item() < 0 < kept.grad[8].item()


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_gates_learn_to_keep_the_share_asked_for(share):
    torch.manual_seed(0)
    model = build_model(TINY_GATED).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    image = torch.randn(16, 3, *TINY_GATED.image_size)
    kept = None
    for _ in range(60):
        kept = model.answers(image).kept
        assert kept is not None
        optimizer.zero_grad()
        kept_distance(kept, share).backward()
        optimizer.step()
    # One gate, of which the goal is the share itself.
    assert kept is not None
    assert kept.item() == pytest.approx(share, abs=0.1)


def test_equal_answers_do_not_diverge(logits):
    assert divergence(logits[0], logits[0] + 3).item() == pytest.approx(0, abs=1e-6)


def test_drop_path_drops_whole_pictures_while_training_only(run):
    model = build_model(run.model)
    assert isinstance(model, Backbone)
    add_drop_path(model, 0.5)
    last = model.encoder()[-1].mlp.fc2
    x = torch.ones(64, 3, 64)
    torch.manual_seed(0)
    whole = last.eval()(x)
    dropped = last.train()(x)
    zero = (dropped == 0).flatten(1).all(1)
    assert 10 < zero.sum() < 54
    torch.testing.assert_close(dropped[~zero], 2 * whole[~zero])


def test_the_first_block_drops_nothing(run):
    model = build_model(run.model)
    assert isinstance(model, Backbone)
    add_drop_path(model, 0.9)
    first = model.encoder()[0].mlp.fc2.train()
    x = torch.ones(8, 3, 64)
    assert torch.equal(first(x), first(x))


@pytest.mark.parametrize("model", [TINY, TINY_LF, TINY_CF_LV], ids=["sac", "lf", "cf-lv"])
@pytest.mark.parametrize("all_tokens", [True, False])
def test_every_fine_position_of_a_target_learns(model, all_tokens):
    """The published DeiT classes of CF-ViT and LF-ViT forget them while all tokens are refined."""
    network = build_model(model)
    image = torch.randn(2, 3, *model.image_size, generator=torch.Generator().manual_seed(0))
    StagedForward(network)(image, all_tokens).last.sum().backward()
    gradient = network.get_parameter("pos_embed_fine").grad
    assert gradient is not None
    touched = int((gradient.abs().sum(dim=2) > 0).sum())
    if all_tokens:
        assert touched == 1 + model.num_fine_tokens
    else:
        assert 1 + 4 * model.num_targets <= touched <= 1 + model.num_fine_tokens
