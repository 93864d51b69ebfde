from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sacvit_deploy.errors import EngineError
from sacvit_deploy.runtime.scheduler import (
    FixedExit,
    Outcome,
    Scheduler,
    join_rows,
    take_rows,
    view_rows,
)
from sacvit_deploy.spec import IMAGE, LOGITS, SCORE, TARGET_INDEX
from tests.fakes import CF, DENSE, SAC, FakeSession, fake_sessions, random_images
from tests.runtime.outcomes import ETA, same

FINAL = SAC.replace(non_target_source="final")


def refined(outcomes) -> list[bool]:
    return [outcome.target_index is not None for outcome in outcomes]


@pytest.fixture(params=[(SAC, "host"), (SAC, "graph"), (CF, "host"), (CF, "graph")], ids=str)
def network(request):
    return request.param


@pytest.fixture
def scheduler(network) -> Scheduler:
    config, selection = network
    return Scheduler(config, fake_sessions(config, selection), selection)


def test_batch_equals_single(scheduler) -> None:
    images = random_images(12)
    together = scheduler.run(images, FixedExit(ETA))
    assert 0 < sum(refined(together)) < 12
    same(together, [scheduler.run(image[None], FixedExit(ETA))[0] for image in images])


def test_a_permuted_batch_gives_permuted_outcomes(scheduler) -> None:
    images = random_images(12)
    order = np.random.default_rng(1).permutation(12)
    together = scheduler.run(images, FixedExit(ETA))
    same(scheduler.run(images[order], FixedExit(ETA)), [together[i] for i in order])


@pytest.mark.parametrize("config", [SAC, CF])
def test_host_selection_equals_graph_selection(config) -> None:
    images = random_images(12)
    scores = fake_sessions(config)["early_exit"].run({IMAGE: images})[SCORE]
    assert any(len(set(row.tolist())) < len(row) for row in scores)  # there are ties
    host, graph = (
        Scheduler(config, fake_sessions(config, mode), mode).run(images, FixedExit(ETA))
        for mode in ("host", "graph")
    )
    same(host, graph)


def test_eta_0_is_the_first_stage_alone(network) -> None:
    config, selection = network
    sessions = fake_sessions(config, selection)
    images = random_images(5)
    outcomes = Scheduler(config, sessions, selection).run(images, FixedExit(0.0))
    assert sessions["refine"].calls == []
    assert not any(refined(outcomes))
    wanted = sessions["early_exit"].run({IMAGE: images})[LOGITS]
    np.testing.assert_array_equal([outcome.logits for outcome in outcomes], wanted)


def test_eta_1_refines_all_and_copies_nothing(network) -> None:
    config, selection = network
    sessions = fake_sessions(config, selection)
    images = random_images(5)
    outcomes = Scheduler(config, sessions, selection).run(images, FixedExit(1.0))
    assert all(refined(outcomes))
    counts = {len(o.target_index) for o in outcomes if o.target_index is not None}
    assert counts == {config.num_targets}
    (feeds,) = sessions["refine"].calls
    assert feeds[IMAGE] is images


def test_graph_selection_passes_the_survivors_and_their_scores() -> None:
    sessions = fake_sessions(SAC, "graph")
    images = random_images(12)
    outcomes = Scheduler(SAC, sessions, "graph").run(images, FixedExit(ETA))
    (feeds,) = sessions["refine"].calls
    rows = np.flatnonzero(refined(outcomes))
    np.testing.assert_array_equal(feeds[IMAGE], images[rows])
    np.testing.assert_array_equal(feeds[SCORE], [outcomes[row].score for row in rows])


@pytest.mark.parametrize("selection", ["host", "graph"])
def test_final_tokens_need_no_embeddings(selection) -> None:
    images = random_images(3)
    first = Scheduler(FINAL, fake_sessions(FINAL, selection), selection).first_pass(
        images, FixedExit(1.0)
    )
    assert set(first.hand_off) == {IMAGE, SCORE, "coarse_features"}


def test_one_graph_has_one_stage() -> None:
    sessions = fake_sessions(DENSE)
    outcomes = Scheduler(DENSE, sessions).run(random_images(3), FixedExit(1.0))
    assert [outcome.early_exit_confidence for outcome in outcomes] == [None] * 3
    assert not any(refined(outcomes))


class Broken(FakeSession):
    def run(self, feeds):
        outputs = super().run(feeds)
        outputs[LOGITS][-1, 2] = np.nan
        return outputs


@pytest.mark.parametrize("role", ["early_exit", "refine"])
def test_logits_that_are_not_finite_are_refused(role) -> None:
    sessions = {**fake_sessions(SAC), role: Broken(SAC, role)}
    with pytest.raises(EngineError, match=f"The {role} graph gave logits"):
        Scheduler(SAC, sessions).run(random_images(2), FixedExit(1.0))


def test_rows_are_taken_and_joined_without_needless_copies() -> None:
    tensors = {"a": np.arange(6).reshape(3, 2)}
    assert take_rows(tensors, np.arange(3)) is tensors
    assert join_rows([tensors]) is tensors
    taken = take_rows(tensors, np.array([0, 2]))
    assert join_rows([taken, tensors])["a"].tolist() == [[0, 1], [4, 5], [0, 1], [2, 3], [4, 5]]


class Recorder:
    """A policy that keeps what it is told."""

    def __init__(self, *etas: float) -> None:
        self.etas = list(etas)
        self.told: list[tuple[str, int]] = []

    def threshold(self) -> float:
        return self.etas.pop(0)

    def saw(self, outcomes) -> None:
        stages = {outcome.stage for outcome in outcomes}
        assert len(stages) == 1
        self.told.append((stages.pop(), len(outcomes)))


def test_a_policy_sets_the_threshold_of_each_batch_and_learns_from_both_stages(scheduler) -> None:
    policy = Recorder(0.0, 1.0, ETA)
    images = random_images(12)
    found = [scheduler.run(images, policy) for _ in range(3)]
    stayed = sum(refined(found[2]))
    assert [sum(refined(outcomes)) for outcomes in found] == [0, 12, stayed]
    assert policy.told == [
        ("early_exit", 12),
        *(("early_exit", 12), ("refine", 12)),
        *(("early_exit", 12), ("refine", stayed)),
    ]


def test_an_outcome_keeps_both_answers(scheduler) -> None:
    images = random_images(6)
    early, both = (scheduler.run(images, FixedExit(eta)) for eta in (0.0, 1.0))
    for one, other in zip(early, both, strict=True):
        np.testing.assert_array_equal(one.early_logits, other.early_logits)
        np.testing.assert_array_equal(one.score, other.score)
        assert one.logits is one.early_logits
        assert other.logits is other.refined_logits
        assert (one.stage, other.stage) == ("early_exit", "refine")
        order = np.argsort(-other.score, kind="stable")
        assert other.target_index.tolist() == order[: len(other.target_index)].tolist()


def test_rows_side_by_side_are_not_copied() -> None:
    tensors = {"a": np.arange(12).reshape(4, 3)}
    beside = view_rows(tensors, np.array([1, 2]))["a"]
    assert np.shares_memory(beside, tensors["a"])
    np.testing.assert_array_equal(beside, tensors["a"][1:3])
    apart = view_rows(tensors, np.array([0, 2, 3]))["a"]
    np.testing.assert_array_equal(apart, tensors["a"][[0, 2, 3]])
    assert view_rows(tensors, np.arange(4)) is tensors


def test_a_refined_outcome_keeps_what_the_first_stage_said() -> None:
    early = Outcome(np.zeros(3), 0.4, np.ones(2), early_ms=2.0)
    late = early.refined({LOGITS: np.ones(3), TARGET_INDEX: np.array([1])}, 5.0)
    wanted = dataclasses.replace(
        early, refined_logits=late.refined_logits, target_index=late.target_index, refine_ms=5.0
    )
    assert vars(late) == vars(wanted)
    assert late.stage == "refine"


class Loud(FakeSession):
    def run(self, feeds):
        outputs = super().run(feeds)
        return {**outputs, LOGITS: outputs[LOGITS] * np.float32(1e30)}


def test_large_logits_are_no_error() -> None:
    sessions = {**fake_sessions(SAC), "early_exit": Loud(SAC, "early_exit")}
    (outcome,) = Scheduler(SAC, sessions).run(random_images(1), FixedExit(0.0))
    assert np.abs(outcome.logits).max() > 1e29
    assert outcome.early_exit_confidence == 1
