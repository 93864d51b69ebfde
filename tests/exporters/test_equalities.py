"""Different ways to the same answer, on exported graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sacvit_deploy.runtime.algorithm import confidence, fine_index, select_tokens
from sacvit_deploy.runtime.load import load
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.samples import sample_pictures
from sacvit_deploy.spec import IMAGE, LOGITS, SCORE, TARGET_INDEX
from tests.exporters.graphs import normalised, session
from tests.fakes import random_pictures
from tests.tiny_models import SAC, SEMANTIC, strong_model

TWO_STAGE = ["sac_host", "sac_graph", "other_graph", "windowed_graph", "lv_pixels"]
PICTURES: list[Any] = [*random_pictures(8), *sample_pictures()]
TOLERANCE = 2e-5
TOKENS, TARGETS = SAC.num_coarse_tokens, SAC.num_targets


@pytest.fixture(scope="module", params=TWO_STAGE)
def pipeline(request) -> Pipeline:
    """With a threshold that half of the pictures pass."""
    made = load(request.getfixturevalue(request.param).path, threads=1)
    surest = sorted(result.early_exit_probability or 0 for result in made(PICTURES))
    middle = len(surest) // 2
    assert surest[middle] - surest[middle - 1] > 10 * TOLERANCE
    made.eta = (surest[middle - 1] + surest[middle]) / 2
    return made


@pytest.fixture(scope="module")
def images(pipeline) -> np.ndarray:
    return np.stack([pipeline.preprocess(picture) for picture in PICTURES])


def assert_same(found, wanted) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one.stage, one.class_index, one.target_tokens) == (
            other.stage,
            other.class_index,
            other.target_tokens,
        )
        assert one.probability == pytest.approx(other.probability, abs=TOLERANCE)
        assert one.early_exit_probability == pytest.approx(
            other.early_exit_probability, abs=TOLERANCE
        )


def logits_of(outcomes) -> np.ndarray:
    return np.stack([outcome.logits for outcome in outcomes])


def test_pictures_take_both_ways_and_get_different_answers(pipeline):
    results = pipeline(PICTURES)
    assert [result.stage for result in results].count("refine") == len(PICTURES) // 2
    assert len({result.class_index for result in results}) > 1
    assert len({result.target_tokens for result in results}) == 1 + len(PICTURES) // 2


def test_at_eta_0_only_the_first_graph_speaks(pipeline, images):
    alone = pipeline._opened.sessions["early_exit"].run({IMAGE: images})[LOGITS]
    outcomes = pipeline.outcomes(images, 0.0)
    np.testing.assert_array_equal(logits_of(outcomes), alone)
    assert all(outcome.target_index is None for outcome in outcomes)


def test_at_eta_1_only_the_second_graph_speaks(pipeline, images):
    sessions, config = pipeline._opened.sessions, pipeline.manifest.config
    feeds = {**sessions["early_exit"].run({IMAGE: images}), IMAGE: images}
    target, other = select_tokens(feeds[SCORE], config)
    feeds |= {TARGET_INDEX: target, "non_target_index": other}
    feeds["fine_index"] = fine_index(target, config.coarse_grid[1])
    taken = {spec.name for spec in pipeline.manifest.graphs[1].inputs}
    alone = sessions["refine"].run({name: feeds[name] for name in taken})[LOGITS]
    outcomes = pipeline.outcomes(images, 1.0)
    np.testing.assert_array_equal(logits_of(outcomes), alone)
    np.testing.assert_array_equal([outcome.target_index for outcome in outcomes], target)


def test_in_between_each_picture_gets_the_answer_of_its_stage(pipeline, images):
    early, refined = (logits_of(pipeline.outcomes(images, eta)) for eta in (0.0, 1.0))
    leaves = confidence(early) > pipeline.eta
    found = logits_of(pipeline.outcomes(images, pipeline.eta))
    wanted = np.where(leaves[:, None], early, refined)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    assert np.abs(early - refined).max() > 0.1


@pytest.mark.parametrize("eta", [0.0, None, 1.0])
def test_a_batch_equals_its_pictures_one_by_one(pipeline, eta):
    assert_same(pipeline(PICTURES, eta=eta), [pipeline(p, eta=eta) for p in PICTURES])


def test_a_permuted_batch_gives_permuted_results(pipeline):
    order = np.random.default_rng(3).permutation(len(PICTURES)).tolist()
    results = pipeline(PICTURES)
    assert_same(pipeline([PICTURES[i] for i in order]), [results[i] for i in order])


@pytest.mark.parametrize(("batch_size", "max_waiting"), [(1, None), (3, 4), (32, None)])
def test_a_stream_equals_a_call(pipeline, batch_size, max_waiting):
    stream = pipeline.stream(iter(PICTURES), batch_size=batch_size, max_waiting=max_waiting)
    assert_same(list(stream), pipeline(PICTURES))


@torch.no_grad()
@pytest.mark.parametrize(
    ("bundle", "model"),
    [("sac_host", "sac_model"), ("sac_graph", "sac_model"), ("other_graph", "other_model")],
)
def test_the_bundle_equals_the_model_end_to_end(bundle, model, request):
    pipeline = load(request.getfixturevalue(bundle).path, threads=1)
    as_torch = load(request.getfixturevalue("sac_host").path).preprocess
    wanted = request.getfixturevalue(model)(
        torch.from_numpy(np.stack([as_torch(picture) for picture in PICTURES]))
    )
    images = np.stack([pipeline.preprocess(picture) for picture in PICTURES])
    for eta, logits in ((0.0, wanted.early_exit.logits), (1.0, wanted.refined_logits)):
        found = logits_of(pipeline.outcomes(images, eta))
        np.testing.assert_allclose(found, logits.numpy(), rtol=0, atol=2e-4)


@torch.no_grad()
def test_semantic_tokens_in_a_bundle_equal_the_model(semantic_bundle):
    model = strong_model(SEMANTIC)
    pipeline = load(semantic_bundle.path, threads=1)
    images = np.stack([pipeline.preprocess(picture) for picture in PICTURES])
    wanted = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits_of(pipeline.outcomes(images, 0.5)), wanted, atol=2e-4)
    assert_same(pipeline(PICTURES), [pipeline(picture) for picture in PICTURES])
    assert len({result.class_index for result in pipeline(PICTURES)}) > 1


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_host_selection_equals_graph_selection_and_floats_equal_pixels(sac_host, sac_graph, eta):
    host, graph = (load(bundle.path, threads=1, eta=eta) for bundle in (sac_host, sac_graph))
    assert_same(host(PICTURES), graph(PICTURES))


def test_floats_equal_pixels_in_every_tensor(sac_host, sac_graph):
    pixels, image = normalised(sac_host, 5)
    wanted = session(sac_host, "early_exit").run({IMAGE: image})
    found = session(sac_graph, "early_exit").run({IMAGE: pixels})
    for name, value in wanted.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(found[name] / scale, value / scale, rtol=0, atol=2e-5)


def test_the_two_ways_to_update_the_class_token_differ(sac_model, other_model, sac_graph):
    """Or else the tests above would not tell one from the other."""
    _, image = normalised(sac_graph, 2)
    with torch.no_grad():
        logits = [m(torch.from_numpy(image)).refined_logits for m in (sac_model, other_model)]
    assert (logits[0] - logits[1]).abs().max() > 0.01


def planted_scores() -> np.ndarray:
    """Rows with ties: none, all, at the border of the selection, among the best, and many."""
    generator = np.random.default_rng(0)
    rows = [generator.permutation(TOKENS).astype(np.float32) for _ in range(4)]
    rows[1][:] = 0.25
    rows[2][np.isin(rows[2], np.arange(TARGETS - 3, TARGETS + 3))] = TARGETS
    rows[3] = generator.integers(0, 3, TOKENS).astype(np.float32)
    score: np.ndarray = np.stack(rows) * np.float32(1e-3)
    return score


@pytest.mark.parametrize("name", ["sac_graph", "other_graph", "windowed_graph"])
def test_of_equal_scores_the_graph_takes_the_lowest_index_too(name, request):
    bundle = request.getfixturevalue(name)
    score = planted_scores()
    pixels, image = normalised(bundle, len(score))
    taken = pixels if bundle.manifest.input_kind == "uint8" else image
    feeds = {**session(bundle, "early_exit").run({IMAGE: taken}), IMAGE: taken, SCORE: score}
    del feeds[LOGITS]
    found = session(bundle, "refine").run(feeds)
    target, _ = select_tokens(score, bundle.manifest.config)
    np.testing.assert_array_equal(found[TARGET_INDEX], target)


def test_with_ties_both_selections_give_the_same_logits(sac_host, sac_graph):
    score = planted_scores()
    pixels, image = normalised(sac_host, len(score))
    handed = session(sac_host, "early_exit").run({IMAGE: image})
    handed = {name: handed[name] for name in ("coarse_embeddings", "coarse_features")}
    target, other = select_tokens(score, SAC)
    indices = {
        TARGET_INDEX: target,
        "non_target_index": other,
        "fine_index": fine_index(target, SAC.coarse_grid[1]),
    }
    wanted = session(sac_host, "refine").run({IMAGE: image, **handed, **indices})[LOGITS]
    found = session(sac_graph, "refine").run({IMAGE: pixels, SCORE: score, **handed})[LOGITS]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
