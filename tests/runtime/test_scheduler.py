from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.errors import EngineError
from sacvit_deploy.runtime.rebatch import Rebatcher
from sacvit_deploy.runtime.scheduler import FixedExit, Scheduler, join_rows, take_rows
from sacvit_deploy.spec import IMAGE, LOGITS, SCORE, SURVIVOR_ROWS
from tests.fakes import CF, DENSE, SAC, FakeSession, fake_sessions, random_images

ETA = 0.19  # about the median confidence of the fake
FINAL = SAC.replace(non_target_source="final")


def same(found, wanted) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)
        assert one.early_exit_confidence == other.early_exit_confidence
        np.testing.assert_array_equal(one.target_index, other.target_index)


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


def test_graph_selection_passes_the_whole_batch_untouched() -> None:
    sessions = fake_sessions(SAC, "graph")
    images = random_images(12)
    outcomes = Scheduler(SAC, sessions, "graph").run(images, FixedExit(ETA))
    (feeds,) = sessions["refine"].calls
    assert feeds[IMAGE] is images
    assert feeds[SURVIVOR_ROWS].tolist() == np.flatnonzero(refined(outcomes)).tolist()
    assert feeds[SURVIVOR_ROWS].dtype == np.int64


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


@pytest.mark.parametrize("max_waiting", [1, 5, 1000])
@pytest.mark.parametrize("refine_batch", [1, 3, 50])
def test_rebatching_changes_no_outcome(network, refine_batch, max_waiting) -> None:
    config, selection = network
    sessions = fake_sessions(config, selection)
    scheduler = Scheduler(config, sessions, selection)
    images = random_images(21)
    wanted = scheduler.run(images, FixedExit(ETA))
    sessions["refine"].calls.clear()
    rebatcher = Rebatcher(
        scheduler, FixedExit(ETA), refine_batch=refine_batch, max_waiting=max_waiting
    )
    found = []
    for start in range(0, 21, 4):
        found += rebatcher.push(images[start : start + 4])
        assert min(start + 4, 21) - len(found) <= max_waiting
    found += rebatcher.finish()
    same(found, wanted)
    assert max(len(feeds[IMAGE]) for feeds in sessions["refine"].calls) <= refine_batch


def test_rebatching_fills_the_second_stage() -> None:
    sessions = fake_sessions(SAC)
    rebatcher = Rebatcher(
        Scheduler(SAC, sessions), FixedExit(ETA), refine_batch=4, max_waiting=1000
    )
    images = random_images(32)
    ready = [outcome for row in images for outcome in rebatcher.push(row[None])]
    sizes = [len(feeds[IMAGE]) for feeds in sessions["refine"].calls]
    assert len(sizes) > 1
    assert set(sizes) == {4}
    assert len(ready) + len(rebatcher.finish()) == 32
    assert rebatcher.finish() == []
