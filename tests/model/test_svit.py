from __future__ import annotations

import logging

import pytest
import torch

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoints import Checkpoint
from sacvit_deploy.model.svit import SelectiveViT
from tests.tiny_models import DENSE, GATED, strong_gated, strong_model

TOKENS = GATED.num_fine_tokens + 1


@pytest.fixture(scope="module")
def model() -> SelectiveViT:
    return strong_gated(GATED).double()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(4, 3, 32, 48, dtype=torch.float64, generator=generator)


def forbid_last(model: SelectiveViT) -> None:
    """Make the last gate keep nothing that it may leave out."""
    _, gate = model.gated_blocks()[-1]
    gate.mlp.fc2.bias.data[0] -= 1e3


@torch.no_grad()
def test_the_modes_agree(model, image):
    masked = model(image, "masked")
    counts = masked.keep.sum(2)
    assert len(counts.unique()) > 2, "the pictures should differ in their counts"
    every = SelectiveViT(GATED.replace(mode="capacity", capacity=(TOKENS,))).double()
    every.load_state_dict(model.state_dict())
    results = [every(image), *(model(image[row : row + 1], "exact") for row in range(len(image)))]
    capacity, exact = results[0], [torch.cat(parts) for parts in zip(*results[1:], strict=True)]
    for logits, keep in (capacity, exact):
        torch.testing.assert_close(logits, masked.logits)
        assert torch.equal(keep, masked.keep)
    for row in range(len(image)):
        one = image[row : row + 1]
        torch.testing.assert_close(model.sequence(one, "exact"), model.sequence(one, "masked"))


@torch.no_grad()
def test_the_answer_is_that_of_the_whole_sequence(model, image):
    wanted = model.classify(model.norm(model.sequence(image)))
    torch.testing.assert_close(model(image).logits, wanted)


@pytest.mark.parametrize("class_token", ["always", "gated_last"])
@torch.no_grad()
def test_who_gates_the_class_token(model, image, class_token):
    other = SelectiveViT(GATED.replace(class_token=class_token)).double()
    other.load_state_dict(model.state_dict())
    forbid_last(other)
    keep = other(image).keep
    assert keep[:, :-1, 0].all()
    assert keep[:, -1, 0].all() == (class_token == "always")
    assert not keep[:, -1, 1:].any()


@torch.no_grad()
def test_where_the_last_gate_keeps_nothing_the_answer_is_that_of_the_block_before(image):
    model = strong_gated(GATED).double()
    forbid_last(model)
    before = []
    model.encoder()[-1].norm1.register_forward_hook(lambda _, inputs, __: before.append(inputs[0]))
    wanted = model.classify(model.norm(model.sequence(image[:1], "masked")))
    torch.testing.assert_close(model.classify(model.norm(before[0])), wanted)
    for mode in ("masked", "exact"):
        found = model(image[:1], mode)
        assert not found.keep[:, -1].any()
        torch.testing.assert_close(found.logits, wanted)


def test_training_draws_and_reports_the_share_of_each_gate(image):
    model = build_model(GATED).double()
    assert isinstance(model, SelectiveViT)
    torch.manual_seed(1)
    logits, _, shares = model.train().answers(image)
    assert shares is not None
    assert logits.shape == (4, GATED.num_classes)
    assert shares.shape == (2,)
    assert ((shares > 0.6) & (shares < 0.85)).all()
    shares.sum().backward()
    gradients = [gate.mlp.fc1.weight.grad for _, gate in model.gated_blocks()]
    assert all(gradient is not None and gradient.any() for gradient in gradients)


def test_a_dense_network_is_a_start_that_answers_as_before(tmp_path, caplog):
    dense = strong_model(DENSE.replace(depth=GATED.depth)).eval()
    path = tmp_path / "dense.pth"
    torch.save({"model": dense.state_dict()}, path)
    with caplog.at_level(logging.WARNING):
        model = Checkpoint.read(path).model(GATED.replace(layer_norm_eps=1e-6))
    assert "a start for training, not a trained svit" in caplog.text
    image = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        found = model(image)
        torch.testing.assert_close(found.logits, dense(image))
    assert found.keep.all()


def test_gates_of_another_network_do_not_fit(tmp_path):
    path = tmp_path / "gated.pth"
    torch.save({"model": strong_gated(GATED).state_dict()}, path)
    with pytest.raises(CheckpointError, match="gates"):
        Checkpoint.read(path).model(GATED.replace(first_block=2))
