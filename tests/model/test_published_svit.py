"""The network computes what the code of SViT's authors computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.published import Published


@pytest.fixture(scope="module")
def published(shared, tmp_path_factory) -> Published:
    return Published.read(shared, "svit_cls", tmp_path_factory.mktemp("svit_cls"))


@torch.no_grad()
def test_in_double_precision_every_way_gives_their_logits(published):
    image = torch.from_numpy(published.image).double()
    model = published.model().double()
    capacity = model.config.replace(
        mode="capacity", capacity=tuple(published["kept_counts"].max(0).tolist())
    )
    for found in (model(image), published.model(capacity).double()(image)):
        wanted = published["float64/logits"]
        np.testing.assert_allclose(found.logits.numpy(), wanted, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(found.keep.numpy(), published["selected"])
    for row, one in enumerate(image.split(1)):
        found = model(one, "exact").logits[0].numpy()
        np.testing.assert_allclose(found, published["float64/logits"][row], rtol=0, atol=1e-9)


@torch.no_grad()
def test_in_single_precision(published):
    image, model = torch.from_numpy(published.image), published.model()
    found = model(image)
    np.testing.assert_array_equal(found.keep.numpy(), published["selected"])
    np.testing.assert_array_equal(found.keep.sum(2).numpy(), published["kept_counts"])
    for name in ("logits", "nested_logits"):
        np.testing.assert_allclose(found.logits.numpy(), published[name], rtol=0, atol=1e-5)
    tokens = model.sequence(image).numpy()
    np.testing.assert_allclose(tokens, published["tokens_before_norm"], rtol=0, atol=5e-5)


@torch.no_grad()
def test_what_enters_the_gates(published):
    model = published.model()
    entered = {}
    for number, gate in enumerate(model.gates):
        gate.register_forward_hook(
            lambda _, inputs, output, key=number: entered.update({key: (inputs[0], output)})
        )
    model(torch.from_numpy(published.image))
    for number in (0, 1, 3, 8):
        wanted = published[f"tokens_into_gate_{number}"]
        np.testing.assert_allclose(entered[number][0].numpy(), wanted, rtol=0, atol=5e-5)
        margin = published["gate_margin"][:, number, 1:]
        np.testing.assert_allclose(entered[number][1][:, 1:].numpy(), margin, rtol=0, atol=5e-5)
