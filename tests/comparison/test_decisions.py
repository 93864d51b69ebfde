from __future__ import annotations

import json

import numpy as np
import pytest

from sacvit_deploy.comparison.decisions import (
    LIMITS,
    Decisions,
    Limits,
    agreement_in_words,
    compare_decisions,
)
from sacvit_deploy.decode import encode
from sacvit_deploy.records import PROBABILITIES, Agreement, TensorParity
from sacvit_deploy.runtime.scheduler import EVERY_PICTURE, FixedExit, Scheduler
from tests.fakes import CF, DENSE, SAC, fake_sessions, random_images
from tests.tiny_models import GATED

CLASSES = SAC.num_classes
ETA = 0.5


def logits(*labels: int, height: float = 4.0) -> np.ndarray:
    """One row per label; at height 4 the largest probability is .9, at 0 it is 1/7."""
    rows = np.zeros((len(labels), CLASSES), np.float32)
    rows[range(len(labels)), labels] = height
    return rows


def decisions(early=None, refined=None, targets=((0, 1), (2, 3), (4, 5), (6, 7))) -> Decisions:
    """Four pictures, two of which exit early: as 0 and 1, the others end as 5 and 6."""
    if early is None:
        early = np.concatenate([logits(0, 1), logits(2, 3, height=0.5)])
    refined = logits(3, 4, 5, 6) if refined is None else refined
    return Decisions(early, refined, np.array(targets))


def every_decision(scheduler, batches) -> Decisions:
    return Decisions.of(o for images in batches for o in scheduler.run(images, EVERY_PICTURE))


def test_the_same_decisions_agree_fully():
    found = compare_decisions(decisions(), decisions(), SAC, ETA)
    assert found == Agreement(4, 0.0, 1.0, 1.0, 0.0)
    assert Limits().hold(found)


def test_an_exit_flip_is_counted_and_so_is_the_label_it_changes():
    surer = np.concatenate([logits(0, 1, 2), logits(3, height=0.5)])
    found = compare_decisions(decisions(), decisions(early=surer), SAC, ETA)
    assert found.exit_flip_rate == 0.25
    assert found.label_agreement == 0.75
    assert found.target_overlap == 1
    assert found.max_probability_error > 0.5


def test_a_label_that_nobody_sees_does_not_count():
    unseen = decisions(early=np.concatenate([logits(0, 1), logits(6, 6, height=0.5)]))
    assert compare_decisions(decisions(), unseen, SAC, ETA).label_agreement == 1
    unseen = decisions(refined=logits(0, 0, 5, 6))
    assert compare_decisions(decisions(), unseen, SAC, ETA).label_agreement == 1
    seen = decisions(refined=logits(3, 4, 5, 0))
    assert compare_decisions(decisions(), seen, SAC, ETA).label_agreement == 0.75


def test_targets_are_compared_as_sets():
    other = decisions(targets=((1, 0), (3, 2), (4, 9), (8, 9)))
    found = compare_decisions(decisions(), other, SAC, ETA)
    assert found.target_overlap == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert (found.exit_flip_rate, found.label_agreement) == (0, 1)


def test_the_error_is_that_of_the_worse_stage():
    for changed in (
        decisions(early=np.concatenate([logits(0, 1), logits(2, 3, height=0.6)])),
        decisions(refined=logits(3, 4, 5, 6, height=4.1)),
    ):
        error = compare_decisions(decisions(), changed, SAC, ETA).max_probability_error
        assert 0 < error < 0.02


@pytest.mark.parametrize(("config", "flips"), [(SAC, 0.0), (CF, 1.0)])
def test_the_comparison_of_the_family_decides(config, flips):
    """Exactly at the threshold `>=` leaves and `>` stays; below it both stay."""
    targets = np.array([[0]])
    at = Decisions(np.array([[0.0, 0.0, -99.0]]), np.zeros((1, 3)), targets)
    lower = Decisions(np.array([[0.0, 0.0, -9.0]]), np.zeros((1, 3)), targets)
    assert compare_decisions(at, lower, config, 0.5).exit_flip_rate == flips


@pytest.mark.parametrize(
    ("changed", "holds"),
    [
        ({}, True),
        ({"exit_flip_rate": 0.005}, True),
        ({"exit_flip_rate": 0.006}, False),
        ({"target_overlap": 0.99}, True),
        ({"target_overlap": 0.98}, False),
        ({"label_agreement": 0.995}, True),
        ({"label_agreement": 0.99}, False),
        ({"max_probability_error": 1e-3}, True),
        ({"max_probability_error": 1.1e-3}, False),
        ({"max_probability_error": float("nan")}, False),
    ],
)
def test_limits(changed, holds):
    values = {"exit_flip_rate": 0.0, "target_overlap": 1.0, "label_agreement": 1.0}
    agreement = Agreement(**{"images": 9, "max_probability_error": 0.0, **values, **changed})
    assert Limits().hold(agreement) is holds
    assert json.loads(json.dumps(encode(agreement)))["images"] == 9


@pytest.mark.parametrize("selection", ["host", "graph"])
def test_a_scheduler_runs_both_stages_for_every_picture(selection):
    scheduler = Scheduler(SAC, fake_sessions(SAC, selection), selection)
    images = random_images(5)
    found = every_decision(scheduler, [images[:2], images[2:]])
    for eta, rows in ((0.0, found.early_logits), (1.0, found.refined_logits)):
        outcomes = scheduler.run(images, FixedExit(eta))
        np.testing.assert_array_equal(rows, [outcome.logits for outcome in outcomes])
    np.testing.assert_array_equal(found.target_index, [o.target_index for o in outcomes])


def test_what_is_missed_is_named_with_what_was_allowed():
    missed = Limits().missed(Agreement(4, 0.25, 1.0, 0.5, 0.0))
    assert [(m.limit, m.found, m.allowed) for m in missed] == [
        ("max_exit_flip_rate", 0.25, 0.005),
        ("min_label_agreement", 0.5, 0.995),
    ]


@pytest.mark.parametrize(
    ("precision", "images", "random", "flips", "labels"),
    [
        ("fp32", 4, False, 0.005, 0.995),
        ("fp32", 4, True, 0.005, 0.995),
        ("fp16", 1000, False, 0.01, 0.995),
        ("fp16", 4, False, 0.25, 0.75),
        ("int8", 1000, False, 0.03, 0.98),
        ("int8", 1000, True, 0.03, 0.5),
        ("int8", 1, False, 1.0, 0.0),
    ],
)
def test_limits_are_no_finer_than_a_picture(precision, images, random, flips, labels):
    limits = Limits.of(precision, images, random=random)
    assert limits.max_exit_flip_rate == flips
    assert limits.min_label_agreement == labels
    assert limits.min_target_overlap == LIMITS[precision].min_target_overlap


def test_a_network_of_one_stage_decides_by_its_only_logits():
    images = random_images(5, DENSE)
    found = every_decision(Scheduler(DENSE, fake_sessions(DENSE)), [images[:2], images[2:]])
    np.testing.assert_array_equal(found.early_logits, found.refined_logits)
    assert found.target_index.shape == (5, 0)
    assert compare_decisions(found, found, DENSE, ETA) == Agreement(5, 0.0, 1.0, 1.0, 0.0)


def test_one_stage_agrees_by_labels():
    logits = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    nothing = np.empty((2, 0), np.int64)
    wanted, other = (Decisions(rows, rows, nothing) for rows in (logits, logits[::-1]))
    found = compare_decisions(wanted, other, DENSE, ETA)
    assert found.label_agreement == 0
    assert found.exit_flip_rate == 0
    assert not Limits().hold(found)
    assert Limits().hold(compare_decisions(wanted, wanted, DENSE, ETA))


def test_probabilities_have_the_limit_of_probabilities():
    limits = Limits(max_probability_error=0.1, max_tensor_error=0.01)
    probability = TensorParity("single", PROBABILITIES, 1, 0.2, 9.0)
    tensor = TensorParity("single", "logits", 1, 9.0, 0.005)
    assert limits.excess(probability) == pytest.approx(2)
    assert limits.excess(tensor) == pytest.approx(0.5)
    (missed,) = limits.missed(None, [probability, tensor])
    assert missed.where == "probabilities of single"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (SAC, "99.0% of labels the same, 98.0% of target tokens the same, 1.0% of exits flip"),
        (GATED, "99.0% of labels the same, 98.0% of kept tokens the same"),
        (DENSE, "99.0% of labels the same"),
    ],
    ids=["two stages", "gates", "dense"],
)
def test_only_what_a_network_decides_is_said(config, said):
    agreement = Agreement(100, 0.01, 0.98, 0.99, 0.25)
    assert agreement_in_words(agreement, config) == f"{said}, probabilities off by 0.25 at most"
