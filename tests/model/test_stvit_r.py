"""The networks compute what the code of STViT-R's authors computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sacvit_deploy.families.config import preset
from sacvit_deploy.model.build import build_model, random_model
from sacvit_deploy.model.semantic_reach import reaches_of
from tests.published_swin import PublishedSwin

PICTURES = range(3)
TOLERANCE = {"tokens": 5e-5, "logits": 1e-5}


@pytest.fixture(scope="module")
def classifier(shared, tmp_path_factory) -> PublishedSwin:
    return PublishedSwin.read(shared, "stvitr_swin_cls", tmp_path_factory.mktemp("cls"))


@pytest.fixture(scope="module")
def backbone(shared, tmp_path_factory) -> PublishedSwin:
    return PublishedSwin.read(shared, "stvitr_swin_backbone", tmp_path_factory.mktemp("bb"))


def sizes(published: PublishedSwin) -> list[tuple[int, int]]:
    return [tuple(size) for size in published.meta["image_sizes"]]


def run(model, image):
    """The result, and what each block of the third stage gave; semantic tokens row by row."""
    stage, seen = model.layers[2], dict[int, Any]()
    for number, block in enumerate(stage.blocks):
        block.register_forward_hook(lambda *args, n=number: seen.__setitem__(n, args[2]))
    with torch.no_grad():
        result = model(image)
    order = np.argsort(stage.reaches.order)
    for number in seen:
        if number % 6 in (1, 2, 3, 4):
            seen[number] = seen[number][:, order]
    return result, {number: value.numpy() for number, value in seen.items()}


def strong(config) -> Any:
    return random_model(config, 0).double()


def assert_near(found, wanted, atol) -> None:
    np.testing.assert_allclose(found[: len(wanted)], wanted, rtol=0, atol=atol)


def test_in_double_precision_the_logits_are_theirs(classifier):
    result, _ = run(classifier.model().double(), classifier.image().double())
    assert_near(result.numpy(), classifier["float64/logits"], 1e-9)


def test_tokens_of_every_block_and_logits(classifier):
    result, seen = run(classifier.model(), classifier.image())
    keys = [key for key in classifier.values if key.endswith("_output") and "block" in key]
    assert len(keys) == 9
    for key in keys:
        assert_near(seen[int(key[12:14])], classifier[key], TOLERANCE["tokens"])
    assert_near(seen[17], classifier["dense_features"], TOLERANCE["tokens"])
    assert_near(result.numpy(), classifier["logits"], TOLERANCE["logits"])


def test_what_the_semantic_tokens_start_from(classifier):
    model = classifier.model()
    _, seen = run(model, classifier.image())
    pooled = model.layers[2].reaches.pooled
    found = seen[0][:, pooled].max(axis=2).reshape(-1, 9, 64)
    assert_near(found, classifier["stage3_block01_pooled"], TOLERANCE["tokens"])


@pytest.mark.parametrize("picture", PICTURES)
def test_in_double_precision_the_features_are_theirs(backbone, picture):
    size = sizes(backbone)[picture]
    result, _ = run(backbone.model(size).double(), backbone.image(f"image_{picture}").double())
    assert_near(result[2].numpy(), backbone[f"float64/features_c4_{picture}"], 1e-9)


@pytest.mark.parametrize("picture", PICTURES)
def test_features_and_tokens_of_every_block(backbone, picture):
    size = sizes(backbone)[picture]
    result, seen = run(backbone.model(size), backbone.image(f"image_{picture}"))
    for number in (1, 2, 4, 5):
        wanted = backbone[f"stage3_block{number:02d}_output_{picture}"]
        assert_near(seen[number], wanted, TOLERANCE["tokens"])
    for name, number in (("c4", 2), ("c5", 3)):
        wanted = backbone[f"features_{name}_{picture}"]
        assert_near(result[number].numpy(), wanted, TOLERANCE["tokens"])
    height, width = size
    assert [tuple(c.shape) for c in result] == [
        (1, 16 << n, -(-height // (4 << n)), -(-width // (4 << n))) for n in range(4)
    ]


@pytest.mark.parametrize("name", ["classifier", "backbone"])
def test_folding_changes_nothing(name, request):
    published = request.getfixturevalue(name)
    key = "image" if name == "classifier" else "image_0"
    model, image = published.model().double(), published.image(key).double()
    folded = model.folded()
    assert not any("layer_scale" in key or ".bn." in key for key in folded.state_dict())
    with torch.no_grad():
        wanted, found = model(image), folded(image)
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12)


def test_keys_projected_once_are_those_of_unfolded_windows():
    """As published: unfold the image tokens, then project the keys of every window."""
    config = preset("stvit_r_swin_demo_128").replace(task="features", image_size=(96, 64))
    model = strong(config)
    block = model.layers[2].blocks[1]
    reaches: Any = reaches_of(config, (6, 4))
    x = torch.rand(2, 24, 192, dtype=torch.float64)
    queries = torch.rand(2, 8, 192, dtype=torch.float64)
    with torch.no_grad():
        found = block(queries, x, reaches.first)
        tokens = torch.cat([x, torch.zeros(2, 1, 192, dtype=torch.float64)], 1)
        for window in range(2):
            keys = tokens[:, torch.tensor(reaches.first.keys[window])]
            seen = ~torch.tensor(reaches.first.hidden[window, 0])
            own = queries[:, 4 * window : 4 * window + 4]
            alone = block(own, keys[:, seen], type(reaches.first)())
            torch.testing.assert_close(found[:, 4 * window : 4 * window + 4], alone)


def test_global_centres_join_the_queries_of_the_first_unit_alone():
    config = preset("stvit_r_swin_demo_128").replace(
        use_global=True, depths=(1, 1, 12, 1), depth=15
    )
    model = strong(config)
    stage = model.layers[2]
    assert stage.semantic_token2.shape == (1, 16, 192)
    asked: dict[int, Any] = {}
    for number in (1, 2, 7, 8):
        block = stage.blocks[number]
        block.register_forward_hook(
            lambda *args, n=number: asked.__setitem__(n, (args[1], args[2]))
        )
    with torch.no_grad():
        model(torch.rand(1, 3, 128, 128, dtype=torch.float64))
    added = asked[2][0][0] - asked[1][1]
    torch.testing.assert_close(
        added[:, np.argsort(stage.reaches.order)], stage.semantic_token2.data
    )
    assert torch.equal(asked[8][0][0], asked[7][1])


def test_a_classifier_has_a_residual_of_what_was_pooled_only_on_request():
    config = preset("stvit_r_swin_demo_128")
    plain = random_model(config, 0)
    kept = build_model(config.replace(shortcut=True)).eval()
    kept.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        assert not torch.allclose(plain(image), kept(image), atol=1e-3)
