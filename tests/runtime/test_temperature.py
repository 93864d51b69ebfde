"""The exit at a temperature: in the rule, in the scheduler, and from a bundle to its results."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sacvit_deploy.comparison.decisions import Decisions, compare_decisions
from sacvit_deploy.engines.registry import OpenedSessions
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.runtime.algorithm import confidence, softmax
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.runtime.scheduler import FixedExit, Scheduler
from tests.exit_records import exit_record
from tests.fakes import SAC, fake_manifest, fake_sessions, random_images, random_pictures

LOGITS = np.random.default_rng(0).normal(scale=4, size=(50, 7)).astype(np.float32)
PICTURES = random_pictures(20)
TEMPERATURE = 0.5
ETA = 0.35  # about the median confidence of the fake at that temperature


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 3.0, 20.0])
def test_the_confidence_is_that_of_divided_logits(temperature):
    expected = softmax(LOGITS.astype(np.float64) / temperature).max(axis=1)
    np.testing.assert_allclose(confidence(LOGITS, temperature), expected, rtol=1e-12)


def test_more_is_less_sure_and_1_changes_nothing():
    np.testing.assert_array_equal(confidence(LOGITS, 1.0), confidence(LOGITS))
    by_temperature = [confidence(LOGITS, t) for t in (0.5, 1.0, 2.0)]
    assert (np.diff(by_temperature, axis=0) < 0).all()


@pytest.mark.parametrize("selection", ["host", "graph"])
def test_a_scheduler_compares_at_its_temperature_and_changes_no_logits(selection):
    images = random_images(12)
    sessions = fake_sessions(SAC, selection)
    plain = Scheduler(SAC, sessions, selection).run(images, FixedExit(0.0))
    scheduler = Scheduler(SAC, sessions, selection, TEMPERATURE)
    logits = np.stack([outcome.logits for outcome in plain])
    for one, sure in zip(
        scheduler.run(images, FixedExit(ETA)), confidence(logits, TEMPERATURE), strict=True
    ):
        assert one.early_exit_confidence == sure
        assert (one.target_index is None) == (sure > ETA)
        if one.target_index is None:
            assert any((one.logits == row).all() for row in logits)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_out_of_range_is_refused(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        Scheduler(SAC, fake_sessions(SAC), "host", temperature)


def test_agreement_is_at_the_same_temperature():
    targets = np.zeros((1, 1), np.int64)
    one = Decisions(np.array([[0.2, 0.0, -9.0]]), np.zeros((1, 3)), targets)
    other = Decisions(np.array([[0.3, 0.0, -9.0]]), np.zeros((1, 3)), targets)
    eta = float(confidence(one.early_logits, 0.1)[0] + 1e-6)
    assert compare_decisions(one, other, SAC, eta).exit_flip_rate == 0
    assert compare_decisions(one, other, SAC, eta, 0.1).exit_flip_rate == 1


def pipeline(*records, runtime="onnxruntime", precision="fp32", eta=None) -> Pipeline:
    manifest = fake_manifest(eta=0.19)
    half = (dataclasses.replace(g, precision="fp16", file=f"h.{g.file}") for g in manifest.graphs)
    manifest = dataclasses.replace(
        manifest, graphs=(*manifest.graphs, *half), exit_calibrations=records
    )
    opened = OpenedSessions(runtime, fake_sessions(SAC), precision=precision)
    return Pipeline(manifest, opened, eta=eta)


RECORD = exit_record(eta=ETA, temperature=TEMPERATURE)


def test_a_pipeline_takes_what_was_calibrated_for_what_it_opened():
    half = exit_record("fp16", eta=0.75)
    engine = exit_record("fp16", "tensorrt", eta=0.875, temperature=2.0)
    records = (RECORD, half, engine)
    for runtime, precision, eta, temperature in (
        ("onnxruntime", "fp32", ETA, TEMPERATURE),
        ("onnxruntime", "fp16", 0.75, 1.0),
        ("tensorrt", "fp16", 0.875, 2.0),
        ("tensorrt-rtx", "fp16", 0.19, 1.0),
        ("tensorrt", "fp32", 0.19, 1.0),
    ):
        found = pipeline(*records, runtime=runtime, precision=precision)
        assert (found.eta, found.temperature) == (eta, temperature)


def test_without_a_calibration_the_bundle_decides():
    assert (pipeline().eta, pipeline().temperature) == (0.19, 1.0)


def test_a_threshold_of_ones_own_is_at_the_same_temperature():
    found = pipeline(RECORD, eta=0.25)
    assert (found.eta, found.temperature) == (0.25, TEMPERATURE)


@pytest.mark.parametrize("stream", [False, True])
def test_results_are_consistent_with_the_decision(stream):
    found = pipeline(RECORD)
    results = list(found.stream(PICTURES)) if stream else found(PICTURES)
    stages = set()
    for result in results:
        stages.add(result.stage)
        assert result.early_exit_probability is not None
        assert (result.stage == "early_exit") == (result.early_exit_probability > ETA)
    assert stages == {"early_exit", "refine"}
