from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.runtime.control.drift import (
    DriftMonitor,
    DriftWarning,
    drift_report,
    effective_count,
)
from sacvit_deploy.runtime.scheduler import Outcome
from tests.exit_records import exit_record
from tests.fake_machine import FRAME, Machine, classify

if TYPE_CHECKING:
    from sacvit_deploy.records import ExitCalibration

ETA = 0.6
LOGITS = np.zeros(3, np.float32)


def record(confidences: np.ndarray) -> ExitCalibration:
    counts, _ = np.histogram(confidences, 20, (0, 1))
    return exit_record(
        eta=ETA,
        images=len(confidences),
        early_exit_fraction=float((confidences > ETA).mean()),
        confidence_histogram=tuple(counts / len(confidences)),
    )


def calibrated(generator: np.random.Generator, images: int = 1000) -> ExitCalibration:
    return record(generator.beta(2, 1, images))


def feed(monitor: DriftMonitor, confidences: np.ndarray) -> list[str]:
    """Show pictures to a monitor; the warnings it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for part in np.array_split(confidences, max(1, len(confidences) // 50)):
            monitor.add([Outcome(LOGITS, value) for value in part.tolist()])
    assert all(issubclass(warning.category, DriftWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


def scenes(generator: np.random.Generator, frames: int, length: int) -> np.ndarray:
    """A film of beta-like confidences: half of their variance belongs to the scene."""
    scene = np.repeat(generator.normal(size=frames // length + 1), length)[:frames]
    mixed = np.sqrt(0.5) * scene + np.sqrt(0.5) * generator.normal(size=frames)
    return np.asarray(np.sqrt(1 / (1 + np.exp(-1.7 * mixed))))


@pytest.mark.parametrize("images", [300, 2000])
def test_every_check_of_a_stationary_stream_is_silent(images) -> None:
    """4000 calibrations and windows; one in a million is allowed each, so none is seen."""
    generator = np.random.default_rng(images)
    alarms = 0
    for _ in range(40):
        reference = calibrated(generator, images)
        for window in generator.beta(2, 1, (50, 1000)):
            alarms += drift_report(window, reference, ">").drifted
    assert alarms == 0


def test_long_stationary_streams_raise_no_alarm() -> None:
    generator = np.random.default_rng(0)
    for _ in range(10):
        monitor = DriftMonitor(calibrated(generator), ">")
        assert feed(monitor, generator.beta(2, 1, 30_000)) == []


@pytest.mark.parametrize("length", [30, 300])
def test_a_film_is_no_drift(length) -> None:
    generator = np.random.default_rng(length)
    for _ in range(5):
        monitor = DriftMonitor(record(scenes(generator, 1000, 1)), ">")
        assert feed(monitor, scenes(generator, 30_000, length)) == []


@pytest.mark.parametrize(("a", "b"), [(1.2, 1.0), (2.0, 1.5), (4.0, 1.0)])
def test_a_shift_is_reported_once(a, b) -> None:
    for seed in range(4):
        generator = np.random.default_rng(seed)
        monitor = DriftMonitor(calibrated(generator), ">")
        assert feed(monitor, generator.beta(2, 1, 3000)) == []
        said = feed(monitor, generator.beta(a, b, 12_000))
        assert len(said) == 1
        assert "exit early at eta 0.6" in said[0]
        assert "sacvit-deploy calibrate BUNDLE DATA" in said[0]
        assert feed(monitor, generator.beta(a, b, 3000)) == []


def test_a_shift_of_confidence_alone_is_found() -> None:
    """As many leave, but those that do are much surer."""
    generator = np.random.default_rng(1)
    before = np.where(generator.random(2000) < 0.7, 0.65, 0.4) + generator.uniform(0, 0.15, 2000)
    after = np.where(generator.random(1000) < 0.7, 0.84, 0.4) + generator.uniform(0, 0.15, 1000)
    report = drift_report(after, record(before), ">")
    assert not report.exit_rate_shifted
    assert report.confidence_shifted
    assert report.psi > 1


def test_a_certain_but_small_shift_is_none() -> None:
    """With any number of pictures some difference is significant."""
    generator = np.random.default_rng(2)
    reference = calibrated(generator, 1_000_000)
    report = drift_report(generator.beta(1.9, 1, 1_000_000), reference, ">")
    assert abs(report.exit_rate_z) > 20
    assert not report.drifted


@pytest.mark.parametrize("count", [0, 1, 30, 499])
def test_few_pictures_say_nothing(count) -> None:
    generator = np.random.default_rng(3)
    report = drift_report(generator.beta(1, 3, count), calibrated(generator), ">")
    assert report.pictures == count
    assert not report.enough
    assert not report.drifted
    assert "too few to tell" in str(report)


def test_frames_of_one_scene_count_for_one() -> None:
    generator = np.random.default_rng(4)
    assert effective_count(generator.beta(2, 1, 1000)) > 300
    assert effective_count(scenes(generator, 1000, 100)) < 100
    assert effective_count(np.full(1000, 0.2)) == 1
    assert not drift_report(np.full(1000, 0.2), calibrated(generator), ">").drifted


@pytest.mark.parametrize("histogram", [(0.0,) * 19 + (1.0,), (0.001,) * 19 + (0.981,)])
def test_a_record_with_one_full_bin_has_no_index(histogram) -> None:
    reference = exit_record(eta=ETA, early_exit_fraction=1.0, confidence_histogram=histogram)
    generator = np.random.default_rng(5)
    report = drift_report(generator.uniform(0.95, 1, 1000), reference, ">")
    assert report.psi == 0
    assert not report.drifted
    assert drift_report(generator.beta(2, 1, 1000), reference, ">").exit_rate_shifted


@pytest.mark.parametrize(("comparison", "share"), [(">", 0.0), (">=", 1.0)])
def test_the_comparison_is_that_of_the_family(comparison, share) -> None:
    report = drift_report(np.full(500, ETA), exit_record(eta=ETA), comparison)
    assert report.early_exit_fraction == share


def test_a_pipeline_checks_by_itself() -> None:
    machine = Machine(0)
    pipeline = machine.pipeline(calibrated(machine.generator))
    classify(pipeline, 600)
    report = pipeline.check_drift()
    assert report.pictures == 600
    assert report.enough
    assert not report.drifted
    assert json.loads(json.dumps(report.to_dict()))["drifted"] is False
    machine.draw = lambda count: machine.generator.beta(1, 2, count)
    with pytest.warns(DriftWarning) as caught:
        pipeline([FRAME] * 6000)
    list(pipeline.stream([FRAME] * 500))
    assert len(caught) == 1
    assert pipeline.check_drift().exit_rate_shifted


def test_the_threshold_in_use_is_no_drift() -> None:
    machine = Machine(1)
    pipeline = machine.pipeline(calibrated(machine.generator)).with_budget(ms=2.5)
    classify(pipeline, 1000)
    assert (pipeline.stats.snapshot().early_exit_fraction or 0) > 0.85
    report = pipeline.check_drift()
    assert report.early_exit_fraction == pytest.approx(0.64, abs=0.06)
    assert not report.drifted


def test_without_a_record_there_is_nothing_to_compare_with() -> None:
    pipeline = Machine().pipeline()
    classify(pipeline, 10)
    with pytest.raises(ConfigError, match="sacvit-deploy calibrate"):
        pipeline.check_drift()
