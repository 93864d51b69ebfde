from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from sacvit_deploy.runtime.control.stats import Stats, confidence_bin
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.runtime.scheduler import Outcome
from tests.fake_machine import FRAME, Machine
from tests.fakes import DENSE, fake_manifest, fake_opened, random_pictures

LOGITS = np.zeros(3, np.float32)
TARGETS = np.zeros(2, np.int64)


def early(ms: float, confidence: float = 0.9) -> Outcome:
    return Outcome(LOGITS, confidence, early_ms=ms)


def refined(outcome: Outcome, ms: float) -> Outcome:
    return replace(outcome, refined_logits=LOGITS, target_index=TARGETS, refine_ms=ms)


def test_nothing_yet() -> None:
    empty = Stats().snapshot()
    assert empty.pictures == 0
    assert empty.stages == {}
    assert empty.early_exit_fraction is None
    assert empty.latency_ms_mean is None
    assert empty.preprocess is None
    assert empty.confidence_histogram is None


@pytest.mark.parametrize("scale_ms", [0.05, 3.0, 900.0])
def test_percentiles_are_within_1_percent(scale_ms) -> None:
    values = np.random.default_rng(0).lognormal(np.log(scale_ms), 0.7, 5000)
    stats = Stats()
    stats.add([early(ms) for ms in values])
    found = stats.snapshot().stages["early_exit"]
    assert found.pictures == 5000
    assert found.latency_ms_mean == pytest.approx(values.mean())
    for share in (50, 95, 99):
        wanted = np.percentile(values, share, method="inverted_cdf")
        assert getattr(found, f"latency_ms_p{share}") == pytest.approx(wanted, rel=0.0101)


def test_latencies_beyond_the_bins_are_counted_at_the_ends() -> None:
    stats = Stats()
    stats.add([early(0.0), early(1e9)])
    found = stats.snapshot().stages["early_exit"]
    assert found.latency_ms_p50 == pytest.approx(1e-3, rel=0.02)
    assert found.latency_ms_p99 == pytest.approx(1e5, rel=0.02)
    assert found.latency_ms_mean == pytest.approx(5e8)


def test_a_late_picture_pays_for_both_stages() -> None:
    stats = Stats()
    stats.add([early(2.0), refined(early(2.0, 0.3), 6.0)])
    found = stats.snapshot()
    assert found.pictures == 2
    assert found.early_exit_fraction == 0.5
    assert found.stages["early_exit"].latency_ms_mean == 2.0
    assert found.stages["refine"].latency_ms_mean == 8.0
    assert found.latency_ms_mean == 5.0


@pytest.mark.parametrize(
    ("confidence", "index"), [(0.0, 0), (0.049, 0), (0.05, 1), (0.5, 10), (0.999, 19), (1.0, 19)]
)
def test_confidence_bins_are_those_of_a_calibration(confidence, index) -> None:
    assert confidence_bin(confidence) == index
    assert np.histogram([confidence], 20, (0, 1))[0][index] == 1


def test_reset_and_json() -> None:
    stats = Stats()
    stats.add([early(2.0, 0.5)] * 4)
    stats.add_preprocess(1.5)
    found = json.loads(json.dumps(stats.snapshot().to_dict()))
    assert found["confidence_histogram"][10] == 1.0
    assert found["preprocess"]["latency_ms_mean"] == 1.5
    assert found["stages"]["early_exit"]["pictures"] == 4
    stats.reset()
    assert stats.snapshot() == Stats().snapshot()


def test_memory_does_not_grow() -> None:
    def numbers(stats: Stats) -> int:
        times = [stats._preprocess, *stats._stages.values()]
        return len(stats._confidences) + sum(len(t._bins) for t in times)

    stats = Stats()
    stats.add([early(1.0)])
    before = numbers(stats)
    for ms in range(1, 3000):
        stats.add([early(float(ms))])
    assert numbers(stats) == before


def test_threads_lose_no_picture() -> None:
    stats = Stats()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: _seconds(stats, [early(1.0)]), range(4)))
    assert stats.snapshot().pictures == 4000


def test_counting_costs_next_to_nothing() -> None:
    stats, outcomes = Stats(), [early(1.0), refined(early(2.0, 0.3), 6.0)]
    best_s = min(_seconds(stats, outcomes) for _ in range(5))
    assert best_s / 2000 < 20e-6


def _seconds(stats: Stats, outcomes: list[Outcome]) -> float:
    start = time.process_time()
    for _ in range(1000):
        stats.add(outcomes)
    return time.process_time() - start


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_pipeline_times_its_stages(batch_size) -> None:
    machine = Machine(early_ms=2, refine_ms=6)
    pipeline = machine.pipeline(eta=0.6)
    pipeline([FRAME] * 20, batch_size=batch_size)
    results = list(pipeline.stream([FRAME] * 20, batch_size=batch_size))
    found = pipeline.stats.snapshot()
    assert found.pictures == 40
    assert found.preprocess is not None
    assert found.preprocess.pictures == 40
    assert 0 < sum(result.stage == "refine" for result in results) < 20
    assert found.stages["early_exit"].latency_ms_mean == pytest.approx(2)
    assert found.stages["refine"].latency_ms_mean == pytest.approx(8)
    wanted = 2 + 6 * (1 - (found.early_exit_fraction or 0))
    assert found.latency_ms_mean == pytest.approx(wanted)


def test_a_network_of_one_stage_has_one_kind_of_picture() -> None:
    pipeline = Pipeline(fake_manifest(DENSE), fake_opened(DENSE))
    pipeline(random_pictures(3))
    found = pipeline.stats.snapshot()
    assert list(found.stages) == ["single"]
    assert found.stages["single"].latency_ms_mean > 0
    assert found.early_exit_fraction is None
    assert found.confidence_histogram is None
