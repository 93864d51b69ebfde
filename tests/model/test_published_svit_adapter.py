"""The network computes what the code of SViT's authors computed for detection."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sacvit_deploy.model.svit_adapter import SelectiveAdapter
from sacvit_deploy.model.two_stage import resize_position_table
from tests.published import Published


@pytest.fixture(scope="module")
def published(shared, tmp_path_factory) -> Published:
    name = "svit_det_adapter"
    return Published.read(shared, name, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def double(published) -> SelectiveAdapter:
    """With positions interpolated in double precision, as theirs were."""
    model: SelectiveAdapter = published.model().double()
    table = torch.from_numpy(published["param/pos_embed"]).double()[:, 1:]
    model.pos_embed.data = resize_position_table(table, (14, 14), model.config.fine_grid)
    return model


def tokens_alone(model: SelectiveAdapter, image: torch.Tensor, mode=None) -> list[torch.Tensor]:
    """Tokens as they enter the blocks and after each group; then the decisions of the gates."""
    groups, margins = [model.embed(image)], list[torch.Tensor]()
    for group in range(4):
        groups.append(model.run_group(group, groups[-1], margins, mode))
    return [*groups, torch.stack(margins, dim=1)]


def shown(features: tuple[torch.Tensor, ...]) -> dict[str, np.ndarray]:
    """The features as they are stored, by name."""
    c2, c3, c4, c5 = (feature.numpy() for feature in features)
    return {
        "features_f1_every4": c2[:, :, ::4, ::4],
        "features_f2_every2": c3[:, :, ::2, ::2],
        "features_f3": c4,
        "features_f4": c5,
    }


@torch.no_grad()
def test_in_double_precision(published, double):
    image = torch.from_numpy(published.image).double()
    *_, last, margins = tokens_alone(double, image)
    wanted = published["float64/tokens/output"]
    np.testing.assert_allclose(last.numpy(), wanted, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(margins.numpy() > 0, published["tokens/selected"])
    features, keep = double(image)
    wanted = published["float64/adapter/features_f4"]
    np.testing.assert_allclose(features[3].numpy(), wanted, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(keep.numpy(), published["adapter/selected"])


@torch.no_grad()
def test_in_double_precision_every_mode_is_the_same(published, double):
    image = torch.from_numpy(published.image).double()
    reference = double(image)
    counts = reference.keep.sum(2).amax(0).tolist()
    capacity = SelectiveAdapter(double.config.replace(mode="capacity", capacity=tuple(counts)))
    capacity.double().load_state_dict(double.state_dict())
    parts = [double(one, "exact") for one in image.split(1)]
    exact = [torch.cat(pair) for pair in zip(*(part.features for part in parts), strict=True)]
    for found in (capacity.eval()(image).features, exact):
        torch.testing.assert_close(tuple(found), reference.features, rtol=0, atol=1e-9)


@torch.no_grad()
def test_in_single_precision(published):
    image, model = torch.from_numpy(published.image), published.model()
    *groups, _ = tokens_alone(model, image)
    names = ("input", "after_group_0", "after_group_1", "after_group_2", "output")
    for name, tokens in zip(names, groups, strict=True):
        np.testing.assert_allclose(tokens, published[f"tokens/{name}"], rtol=0, atol=5e-5)
    features, keep = model(image)
    np.testing.assert_array_equal(keep.numpy(), published["adapter/selected"])
    for name, feature in shown(features).items():
        np.testing.assert_allclose(feature, published[f"adapter/{name}"], rtol=0, atol=5e-5)


@torch.no_grad()
def test_folding_changes_nothing(published, double):
    image = torch.from_numpy(published.image).double()
    found = double.folded()(image)
    torch.testing.assert_close(found.features, double(image).features, rtol=0, atol=1e-9)
    assert torch.equal(found.keep, double(image).keep)


@torch.no_grad()
def test_what_leaves_the_first_interaction(published):
    model = published.model()
    seen: dict[str, torch.Tensor] = {}
    model.interactions[0].extractor.register_forward_hook(
        lambda _, inputs, output: seen.update(x=inputs[1], c=output)
    )
    model(torch.from_numpy(published.image))
    wanted = published["adapter/x_after_interaction_0"]
    np.testing.assert_allclose(seen["x"], wanted, rtol=0, atol=5e-5)
    wanted = published["adapter/c_after_interaction_0"]
    np.testing.assert_allclose(seen["c"][:1], wanted, rtol=0, atol=5e-5)
