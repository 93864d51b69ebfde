from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sacvit_deploy.evaluation.exit_sweep import LARGEST_CURVE, Exit, sweep_exits
from sacvit_deploy.families.config import mean_macs_g
from sacvit_deploy.runtime.algorithm import confidence, exits
from tests.evaluation.answers_made_up import EARLY_MS, REFINE_MS, made_up_answers, population
from tests.fakes import CF, SAC


def by_hand(answers, config, eta, temperature=1.0):
    """Top-1 and share exiting early, by the exit rule of the runtime."""
    decisions = answers.decisions
    confidences = confidence(decisions.early_logits, temperature)
    leaves = exits(confidences, eta, config.stages.exit_comparison)
    taken = np.where(leaves, decisions.early_logits.argmax(1), decisions.refined_logits.argmax(1))
    return (taken == answers.class_index).mean(), leaves.mean()


@pytest.mark.parametrize("config", [SAC, CF], ids=lambda config: config.family)
@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
def test_every_candidate_is_what_the_exit_rule_makes_of_it(config, temperature):
    answers = population(200, seed=1)
    sweep = sweep_exits(answers, config, temperature)
    assert len(sweep.eta) == 201
    for index, eta in enumerate(sweep.eta):
        top1, share = by_hand(answers, config, eta, temperature)
        assert sweep.top1[index] == pytest.approx(top1)
        assert sweep.early_exit_fraction[index] == pytest.approx(share)
        assert sweep.correct(index).mean() == pytest.approx(top1)
        assert sweep.exits_early(index).mean() == pytest.approx(share)


def test_both_ends_are_the_stages_alone():
    sweep = sweep_exits(population(100, seed=2), SAC)
    first, last = sweep.point(0), sweep.point(len(sweep.eta) - 1)
    assert (first.eta, last.eta) == (0.0, 1.0)
    assert (first.early_exit_fraction, last.early_exit_fraction) == (1.0, 0.0)
    assert last.top1 == pytest.approx(sweep.refine_top1)
    assert first.macs_mean_g == pytest.approx(mean_macs_g(SAC, 0.0))
    assert last.macs_mean_g == pytest.approx(mean_macs_g(SAC, 1.0))
    assert (first.latency_ms_mean, last.latency_ms_mean) == (EARLY_MS, EARLY_MS + REFINE_MS)


def test_a_threshold_lies_half_way_between_two_confidences():
    sweep = sweep_exits(made_up_answers([0.6, 0.8, 0.9], [True] * 3, [True] * 3), SAC)
    np.testing.assert_allclose(sweep.eta, [0, 0.7, 0.85, 1])


def test_pictures_of_one_confidence_are_not_parted():
    sweep = sweep_exits(made_up_answers([0.6, 0.6, 0.9], [True] * 3, [False] * 3), SAC)
    assert sweep.num_refined.tolist() == [0, 2, 3]
    assert len(sweep.eta) == 3


@pytest.mark.parametrize("config", [SAC, CF], ids=lambda config: config.family)
def test_neighbouring_numbers_are_parted_too(config):
    """No number lies between them; one of the two parts them."""
    answers = made_up_answers([0.6, 0.7, 0.8], [True] * 3, [False] * 3)
    # Logits that differ in their last place.
    logits = answers.decisions.early_logits.copy()
    logits[1, 0] = np.nextafter(logits[0, 0], 9)
    answers = dataclasses.replace(
        answers, decisions=dataclasses.replace(answers.decisions, early_logits=logits)
    )
    sweep = sweep_exits(answers, config)
    for index, eta in enumerate(sweep.eta):
        top1, share = by_hand(answers, config, eta)
        assert (sweep.top1[index], sweep.early_exit_fraction[index]) == pytest.approx((top1, share))


@pytest.mark.parametrize(("count", "points"), [(5, 6), (60, 61), (500, LARGEST_CURVE)])
def test_the_curve_is_thinned_and_keeps_ends_and_choice(count, points):
    sweep = sweep_exits(population(count, seed=3), SAC)
    chosen = count // 3 + 1
    curve = sweep.curve(chosen)
    assert len(curve) in (points, points - 1)
    etas = [point.eta for point in curve]
    assert etas == sorted(etas)
    assert (etas[0], etas[-1]) == (0.0, 1.0)
    assert sweep.point(chosen) in curve


def test_the_histogram_is_of_shares():
    sweep = sweep_exits(made_up_answers([0.51, 0.52, 0.97, 0.999], [True] * 4, [True] * 4), SAC)
    histogram = sweep.histogram()
    assert histogram[10] == 0.5
    assert histogram[19] == 0.5
    assert sum(histogram) == 1


def test_percentiles_are_of_single_pictures():
    sweep = sweep_exits(population(100, seed=4), SAC)
    nearly_all_leave = sweep.point(3)
    assert nearly_all_leave.latency_ms_p95 == EARLY_MS
    assert sweep.point(10).latency_ms_p95 == EARLY_MS + REFINE_MS


@pytest.mark.parametrize("config", [SAC, CF], ids=lambda config: config.family)
def test_a_threshold_of_other_data_finds_its_candidate(config):
    answers = population(100, seed=5)
    sweep = sweep_exits(answers, config)
    for eta in (0.0, 0.3, 0.61, 0.75, float(sweep.confidence[40]), 0.99, 1.0):
        index = sweep.index_of(eta)
        expected = by_hand(answers, config, eta)
        assert (sweep.top1[index], sweep.early_exit_fraction[index]) == pytest.approx(expected)


def test_the_five_best_are_those_of_the_stage_that_answers():
    answers = made_up_answers([0.9, 0.2, 0.8], [True, False, False], [False, True, False])
    generator = np.random.default_rng(0)
    logits = [generator.integers(0, 4, (3, 9)).astype(np.float32) for _ in range(2)]
    decisions = dataclasses.replace(
        answers.decisions, early_logits=logits[0], refined_logits=logits[1]
    )
    answers = dataclasses.replace(answers, decisions=decisions)
    sweep = sweep_exits(answers, SAC)
    for eta in sweep.eta:
        early = sweep.exits_early(sweep.index_of(eta))
        order = np.argsort(confidence(logits[0], 1.0), kind="stable")
        found = 0
        for row, leaves in zip(order, early, strict=True):
            best = np.argsort(-logits[0 if leaves else 1][row], kind="stable")[:5]
            found += answers.class_index[row] in best
        assert sweep.operating_point(Exit(eta)).top5 == pytest.approx(found / 3)
