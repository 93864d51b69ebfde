"""Recorded runs, in the memory of the CPU: bound for good, copied in and out, used in turn."""

from __future__ import annotations

import gc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from sacvit_deploy.engines import onnxruntime_recorded, onnxruntime_session
from sacvit_deploy.engines.onnxruntime_providers import CPU
from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession, OrtTensor
from sacvit_deploy.engines.session import Rows, SessionOptions
from sacvit_deploy.engines.tensorrt_engine import CudaGraphWarning
from sacvit_deploy.errors import EngineError
from sacvit_deploy.families.config import graph_specs
from sacvit_deploy.runtime.scheduler import FixedExit, Scheduler
from sacvit_deploy.spec import IMAGE, LOGITS, SCORE
from tests.fakes import random_images

OPTIONS = SessionOptions(("CPU",), 1)


@pytest.fixture(autouse=True)
def _the_cpu_records(monkeypatch) -> None:
    """The library ignores the number of a recording on the CPU; all else is as on a GPU."""
    monkeypatch.setattr(onnxruntime_session, "_RECORDS", {CPU: "cpu"})


@pytest.fixture
def entry(bundle):
    return bundle.graph("early_exit")


@pytest.fixture
def session(bundle, entry) -> OnnxRuntimeSession:
    opened = OnnxRuntimeSession(bundle.graph_path(entry), OPTIONS, graph=entry)
    assert opened.records
    return opened


@pytest.fixture
def plain(bundle, entry) -> OnnxRuntimeSession:
    options = SessionOptions(("CPU",), 1, cuda_graphs=False)
    opened = OnnxRuntimeSession(bundle.graph_path(entry), options, graph=entry)
    assert not opened.records
    return opened


def recordings(session: OnnxRuntimeSession, monkeypatch) -> list[str]:
    """Numbers of the recordings of all further runs, as the library is told."""
    told: list[str] = []
    sets: Any = session._recorded
    run = sets.session.run_with_iobinding

    def noted(binding, options=None):
        told.append(options.get_run_config_entry("gpu_graph_id"))
        return run(binding, options)

    monkeypatch.setattr(sets.session, "run_with_iobinding", noted)
    return told


def test_each_shape_is_recorded_once_and_replayed(session, plain, monkeypatch) -> None:
    told = recordings(session, monkeypatch)
    results = []
    for size, seed in ((1, 0), (3, 1), (1, 2), (3, 3), (3, 3)):
        feeds = {IMAGE: random_images(size, seed=seed)}
        results.append((session.run(feeds), plain.run(feeds)))
    for found, wanted in results:  # the first are what they were
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
    # At first a run without recording is compared with a replay.
    assert told == ["-1", "1", "1", "-1", "2", "2", "1", "2", "2"]


def test_what_stays_is_not_computed_anew(session, plain, monkeypatch) -> None:
    told = recordings(session, monkeypatch)
    wanted = [plain.run({IMAGE: random_images(2, seed=seed)})[SCORE] for seed in range(3)]
    handles = [
        session.run_on_device({IMAGE: random_images(2, seed=seed)}, (SCORE, IMAGE))[1]
        for seed in range(3)
    ]
    for kept, array in zip(handles, wanted, strict=True):
        assert isinstance(kept[SCORE], OrtTensor)
        np.testing.assert_array_equal(kept[SCORE].value.numpy(), array)
    assert set(told) == {"-1", "1", "2", "3"}
    del handles, kept
    gc.collect()
    told.clear()
    for seed in range(3):
        session.run({IMAGE: random_images(2, seed=seed)})
    assert set(told) < {"1", "2", "3"}, "memory that nobody holds is used again"


def test_handles_and_rows_are_copied_within_the_device(session, plain) -> None:
    images = random_images(4)
    _, kept = session.run_on_device({IMAGE: images}, (IMAGE,))
    again, _ = session.run_on_device({IMAGE: kept[IMAGE]}, ())
    np.testing.assert_array_equal(again[LOGITS], plain.run({IMAGE: images})[LOGITS])
    rows = Rows(kept[IMAGE], np.array([1, 3]))
    some, _ = session.run_on_device({IMAGE: rows}, ())
    np.testing.assert_array_equal(some[LOGITS], plain.run({IMAGE: images[[1, 3]]})[LOGITS])


def test_more_shapes_than_are_kept_are_computed_all_the_same(session, plain, monkeypatch) -> None:
    monkeypatch.setattr(onnxruntime_recorded, "MOST_SETS", 2)
    told = recordings(session, monkeypatch)
    for size in (1, 2, 3, 4, 3):
        feeds = {IMAGE: random_images(size)}
        np.testing.assert_array_equal(session.run(feeds)[LOGITS], plain.run(feeds)[LOGITS])
    assert Counter(told[-3:]) == {"-1": 3}


def test_a_recording_that_gives_something_else_is_not_used(session, plain, monkeypatch) -> None:
    sets: Any = session._recorded
    run = sets.session.run_with_iobinding

    def replay_nothing(binding, options=None):
        if options.get_run_config_entry("gpu_graph_id") == "-1":
            run(binding, options)

    monkeypatch.setattr(sets.session, "run_with_iobinding", replay_nothing)
    feeds = {IMAGE: random_images(2)}
    with pytest.warns(CudaGraphWarning, match="A recorded run gives another"):
        found = session.run(feeds)
    assert not session.records
    np.testing.assert_array_equal(found[LOGITS], plain.run(feeds)[LOGITS])
    np.testing.assert_array_equal(session.run(feeds)[LOGITS], found[LOGITS])


def test_a_graph_that_cannot_be_recorded_runs_without(bundle, entry, plain, monkeypatch) -> None:
    import onnxruntime

    create = onnxruntime.InferenceSession

    def refuse(*arguments, **options):
        if options.get("enable_fallback") == 0:
            raise RuntimeError("This session cannot use the graph capture feature")
        return create(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.warns(CudaGraphWarning, match=r"cannot record ee\.onnx .*graph capture feature"):
        session = OnnxRuntimeSession(bundle.graph_path(entry), OPTIONS, graph=entry)
    assert not session.records
    feeds = {IMAGE: random_images(2)}
    np.testing.assert_array_equal(session.run(feeds)[LOGITS], plain.run(feeds)[LOGITS])


def test_a_later_failure_is_one_error(session, monkeypatch) -> None:
    session.run({IMAGE: random_images(2)})
    sets: Any = session._recorded
    monkeypatch.setattr(sets.session, "run_with_iobinding", lambda *_: 1 / 0)
    with pytest.raises(EngineError, match="failed on CPUExecutionProvider: division by zero"):
        session.run({IMAGE: random_images(2)})
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run({IMAGE: random_images(2)})


def test_threads_take_turns(session, plain) -> None:
    batches = [random_images(1 + seed % 3, seed=seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda images: session.run({IMAGE: images})[LOGITS], batches))
    for images, logits in zip(batches, found, strict=True):
        np.testing.assert_array_equal(logits, plain.run({IMAGE: images})[LOGITS])


def test_what_is_recorded_can_be_prepared(session, plain) -> None:
    assert session.prepared_sizes(3) == [1, 2, 3]
    assert session.prepared_sizes(64) == list(range(1, 17))
    assert plain.prepared_sizes(64) == [64]


def test_without_a_contract_nothing_is_recorded(bundle, entry) -> None:
    assert not OnnxRuntimeSession(bundle.graph_path(entry), OPTIONS).records


@pytest.mark.parametrize("name", ["sac_host", "other_graph"])
def test_both_stages_answer_as_without(request, monkeypatch, name) -> None:
    """The hand-off stays on the device, the survivors' rows are gathered there."""
    bundle = request.getfixturevalue(name)
    monkeypatch.setattr(onnxruntime_session, "_ON_GPU", (CPU,))
    config, selection = bundle.manifest.config, bundle.manifest.selection
    specs = graph_specs(config, selection=selection)
    images = random_images(6, config=config)
    results = {}
    for record in (True, False):
        options = SessionOptions(("CPU",), 1, cuda_graphs=record)
        entries = {spec.role: bundle.graph(spec.role) for spec in specs}
        sessions = {
            role: OnnxRuntimeSession(bundle.graph_path(entry), options, graph=entry)
            for role, entry in entries.items()
        }
        scheduler = Scheduler(config, sessions, selection)
        assert scheduler._device_pair is not None
        results[record] = [scheduler.run(images, FixedExit(eta)) for eta in (0.0, 0.5, 1.0, 1.0)]
        assert all(session.records is record for session in sessions.values())
    for found, wanted in zip(results[True], results[False], strict=True):
        for one, other in zip(found, wanted, strict=True):
            assert one.stage == other.stage
            np.testing.assert_allclose(one.logits, other.logits, rtol=1e-5, atol=1e-6)
