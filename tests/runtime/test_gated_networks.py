"""Bundles of networks with gates in the pipeline: kept tokens, single pictures, overflow."""

from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.runtime.load import load
from sacvit_deploy.runtime.pipeline import Pipeline
from tests.fakes import random_images, random_pictures
from tests.tiny_models import GATED, strong_gated

IMAGES = random_images(12, GATED)


def exported(made_once, name: str, **fields) -> Pipeline:
    config = GATED.replace(**fields)
    bundle = made_once(
        f"gated_{name}", lambda path: export_bundle(strong_gated(config), path, ExportOptions())
    )
    return load(bundle.path, threads=1)


@pytest.fixture(scope="module")
def masked(made_once) -> Pipeline:
    return exported(made_once, "masked")


@pytest.fixture(scope="module")
def exact(made_once) -> Pipeline:
    return exported(made_once, "exact", mode="exact")


@pytest.fixture(scope="module")
def strict(made_once, masked) -> Pipeline:
    """With capacities that are too small for some of the pictures."""
    counts = np.stack([outcome.kept for outcome in masked.outcomes(IMAGES)])
    middle = tuple(int(count) for count in np.median(counts, axis=0))
    return exported(made_once, "strict", mode="capacity", capacity=middle, strict=True)


def logits(outcomes) -> np.ndarray:
    return np.stack([outcome.logits for outcome in outcomes])


def test_a_graph_for_one_picture_takes_a_batch(masked, exact):
    wanted, found = masked.outcomes(IMAGES), exact.outcomes(IMAGES)
    np.testing.assert_allclose(logits(found), logits(wanted), rtol=0, atol=1e-4)
    for one, other in zip(wanted, found, strict=True):
        assert one.kept is not None
        np.testing.assert_array_equal(one.kept, other.kept)
        np.testing.assert_array_equal(one.kept_mask, other.kept_mask)
        np.testing.assert_array_equal(one.kept, one.kept_mask.sum(1))


def test_results_tell_the_kept_tokens(exact):
    pictures = random_pictures(3)
    results = exact(pictures)
    assert {result.stage for result in results} == {"single"}
    for picture, result in zip(pictures, results, strict=True):
        assert len(result.kept_tokens) == 2
        assert result.to_dict()["kept_tokens"] == list(result.kept_tokens)
        assert exact(picture) == result


def test_what_overflows_is_computed_again_in_full(masked, strict):
    wanted, found = masked.outcomes(IMAGES), strict.outcomes(IMAGES)
    np.testing.assert_allclose(logits(found), logits(wanted), rtol=0, atol=1e-4)
    capacity = np.array(strict.manifest.config.gating.capacity)
    # A gate counts what the blocks before it made, which the capacity of these may have changed.
    over = [bool((outcome.kept > capacity).any()) for outcome in wanted]
    again = [outcome.stage == "refine" for outcome in found]
    assert 0 < sum(again) < len(again)
    assert [a or not o for a, o in zip(again, over, strict=True)] == [True] * len(over)
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(one.kept, other.kept)


def test_single_pictures_and_streams_answer_alike(strict):
    pictures = random_pictures(12)
    together = strict(pictures)
    assert len({result.stage for result in together}) == 2
    for other in ([strict(picture) for picture in pictures], list(strict.stream(pictures))):
        assert [result.kept_tokens for result in other] == [r.kept_tokens for r in together]
        assert [result.stage for result in other] == [r.stage for r in together]


@pytest.mark.parametrize("name", ["exact", "strict"])
def test_openvino_keeps_the_same_tokens(request, made_once, name):
    pytest.importorskip("openvino", reason="needs the openvino extra")
    wanted = request.getfixturevalue(name)
    bundle = made_once(f"gated_{name}", lambda _: pytest.fail("was made before"))
    with load(bundle.path, backend="openvino", threads=1) as pipeline:
        found = pipeline.outcomes(IMAGES)
    for one, other in zip(wanted.outcomes(IMAGES), found, strict=True):
        np.testing.assert_array_equal(one.kept_mask, other.kept_mask)
        np.testing.assert_allclose(one.logits, other.logits, rtol=0, atol=1e-4)
