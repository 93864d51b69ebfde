"""Sessions of engines on real CUDA, where there is a GPU, and on the fake of it everywhere.

Torch kernels stand for the engine's, so `cuda-bindings` and torch are enough:

    pytest -m gpu tests/engines/test_sessions_on_cuda.py
"""

from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, whose kernels stand for an engine's")

from sacvit_deploy.engines.device_memory import CudaDevice  # noqa: E402
from sacvit_deploy.engines.session import Rows, SessionOptions  # noqa: E402
from sacvit_deploy.engines.tensorrt_engine import CudaGraphWarning  # noqa: E402
from sacvit_deploy.errors import EngineError  # noqa: E402
from sacvit_deploy.runtime.scheduler import FixedExit, Scheduler  # noqa: E402
from sacvit_deploy.spec import IMAGE, LOGITS, SCORE, TARGET_INDEX  # noqa: E402
from tests.engines.engine_bundles import VERSION, Workplace  # noqa: E402
from tests.engines.fake_cuda import Gpu, fake_cuda  # noqa: E402
from tests.engines.torch_tensorrt import (  # noqa: E402
    KernelSession,
    OnCuda,
    OnFakeGpu,
    torch_tensorrt,
)
from tests.fakes import SAC  # noqa: E402

PLAIN = SessionOptions(cuda_graphs=False)
SIZES = (1, 5, 8, 5, 3, 1, 7)
MIB = 1 << 20


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request, monkeypatch):
    if request.param == "fake":
        gpu = Gpu()
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake_cuda(gpu))
        return OnFakeGpu(gpu)
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    if not torch.cuda.is_available():
        pytest.skip("needs a torch that was built for CUDA and finds the GPU")
    return OnCuda()


@pytest.fixture
def workplace(place, tmp_path, monkeypatch) -> Workplace:
    modules = {
        "tensorrt": torch_tensorrt(place, SAC, version=VERSION["tensorrt"]),
        "tensorrt-rtx": torch_tensorrt(place, SAC, rtx=True, version=VERSION["tensorrt-rtx"]),
    }
    made = Workplace(tmp_path, place, modules, has_graphs=False)
    made.install(monkeypatch)
    return made


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def backend(request):
    return request.param


def pictures(count, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 3, *SAC.image_size)).astype(np.float32)


def wanted(images):
    return KernelSession(SAC, "early_exit").run({IMAGE: images})


def same(found, expected) -> None:
    """Sums of whole numbers are exact anywhere; a cosine differs in its last bits."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        if name == LOGITS:
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-4)
        else:
            np.testing.assert_array_equal(found[name], array)


def on_host(selection):
    """The same network without a device."""
    sessions: Any = {role: KernelSession(SAC, role) for role in ("early_exit", "refine")}
    return Scheduler(SAC, sessions, selection)


def alike(found, expected) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, rtol=0, atol=1e-4)
        assert (one.target_index is None) == (other.target_index is None)
        if other.target_index is not None:
            np.testing.assert_array_equal(one.target_index, other.target_index)


def middle(images):
    """A threshold that half of these pictures pass."""
    outcomes = on_host("host").run(images, FixedExit(0.0))
    return FixedExit(float(np.median([outcome.early_exit_confidence for outcome in outcomes])))


@pytest.mark.parametrize("options", [None, PLAIN], ids=["graphs", "plain"])
def test_every_batch_gives_what_the_kernels_compute(workplace, backend, options) -> None:
    opened = workplace.open(workplace.bundle(backend), backend, options)
    for size in SIZES:
        images = pictures(size, seed=size)
        same(opened.sessions["early_exit"].run({IMAGE: images}), wanted(images))


def test_a_recorded_batch_is_replayed_with_new_pictures(workplace) -> None:
    session = workplace.open(workplace.bundle()).sessions["early_exit"]
    for seed in range(6):
        images = pictures(6, seed)
        same(session.run({IMAGE: images}), wanted(images))
    assert workplace.library().executions == 2, "the first run, and the recording"


def test_pictures_that_pad_have_no_effect(workplace) -> None:
    session = workplace.open(workplace.bundle()).sessions["early_exit"]
    session.run({IMAGE: pictures(8, seed=1) * 100})
    images = pictures(5)
    same(session.run({IMAGE: images}), wanted(images))


@pytest.mark.parametrize("selection", ["host", "graph"])
@pytest.mark.parametrize("options", [None, PLAIN], ids=["graphs", "plain"])
def test_both_stages_hand_over_on_the_device(workplace, backend, selection, options) -> None:
    bundle = workplace.bundle(backend, selection=selection)
    found = Scheduler(SAC, workplace.open(bundle, backend, options).sessions, selection)
    for size in SIZES:
        images = pictures(size, seed=size)
        for policy in (FixedExit(0.0), middle(images), FixedExit(1.0)):
            expected = on_host(selection).run(images, policy)
            alike(found.run(images, policy), expected)


def test_a_held_tensor_stays_while_the_session_goes_on(workplace) -> None:
    sessions = workplace.open(workplace.bundle()).sessions
    images = pictures(5)
    names = (IMAGE, SCORE, "coarse_embeddings", "coarse_features")
    _, kept = sessions["early_exit"].run_on_device({IMAGE: images}, names)
    for seed in range(1, 4):
        sessions["early_exit"].run({IMAGE: pictures(8, seed)})
    rows = np.array([0, 2, 3])
    feeds = {name: Rows(handle, rows) for name, handle in kept.items()}
    found, _ = sessions["refine"].run_on_device(feeds, ())
    handed = {name: array[rows] for name, array in wanted(images).items() if name != LOGITS}
    same(found, KernelSession(SAC, "refine").run({**handed, IMAGE: images[rows]}))


def test_recordings_that_make_room_are_made_again(workplace, monkeypatch) -> None:
    monkeypatch.setattr("sacvit_deploy.engines.tensorrt_session._MOST_RECORDED", 2)
    session = workplace.open(workplace.bundle()).sessions["early_exit"]
    for size in (1, 2, 3, 4, 1, 2, 1, 4):
        images = pictures(size, seed=size)
        same(session.run({IMAGE: images}), wanted(images))
    assert workplace.library().contexts == 7, "only the last 1 was still there"


@pytest.mark.parametrize("selection", ["host", "graph"])
def test_threads_share_both_stages(workplace, backend, selection) -> None:
    bundle = workplace.bundle(backend, selection=selection)
    found = Scheduler(SAC, workplace.open(bundle, backend).sessions, selection)
    images = pictures(32)
    policy = middle(images)
    expected = on_host(selection).run(images, policy)

    def classify(start):
        size = 1 + start % 7
        return start, found.run(images[start : start + size], policy)

    with ThreadPoolExecutor(6) as pool:
        for start, outcomes in pool.map(classify, [n % 25 for n in range(100)]):
            alike(outcomes, expected[start : start + len(outcomes)])


def filled(session, images):
    array = session.input_array(IMAGE, len(images))
    array[...] = images
    return array


@pytest.mark.parametrize("integrated", [False, True], ids=["copied", "mapped"])
@pytest.mark.parametrize("options", [None, PLAIN], ids=["graphs", "plain"])
def test_pictures_are_read_where_the_host_wrote_them(
    workplace, integrated, options, monkeypatch
) -> None:
    """Any GPU can read mapped memory; on a board that shares its memory it costs nothing."""
    monkeypatch.setattr(CudaDevice, "is_integrated", integrated)
    sessions = workplace.open(workplace.bundle(), options=options).sessions
    scheduler = Scheduler(SAC, sessions, "graph")
    for size in SIZES:
        images = pictures(size, seed=size)
        same(
            sessions["early_exit"].run({IMAGE: filled(sessions["early_exit"], images)}),
            wanted(images),
        )
        policy = middle(images)
        expected = on_host("graph").run(images, policy)
        alike(scheduler.run(scheduler.batch_of(list(images)), policy), expected)
        alike(scheduler.run(images, policy), expected)


def test_what_cannot_be_recorded_runs_all_the_same(workplace) -> None:
    """An engine that waits for its stream breaks a recording; the stream must be usable again."""
    workplace.library().unrecordable = True
    session = workplace.open(workplace.bundle()).sessions["early_exit"]
    for size in (3, 4):
        images = pictures(size)
        with pytest.warns(CudaGraphWarning, match="without CUDA graphs"):
            same(session.run({IMAGE: images}), wanted(images))
        same(session.run({IMAGE: images}), wanted(images))
    workplace.library().unrecordable = False
    same(session.run({IMAGE: pictures(5)}), wanted(pictures(5)))


def test_a_run_that_is_refused_is_one_error_and_passes(workplace, backend) -> None:
    session = workplace.open(workplace.bundle(backend), backend).sessions["early_exit"]
    workplace.library(backend).refuse.add("execute_async_v3")
    with pytest.raises(EngineError, match="failed to run"):
        session.run({IMAGE: pictures(3)})
    workplace.library(backend).refuse.clear()
    same(session.run({IMAGE: pictures(3)}), wanted(pictures(3)))


def test_too_much_memory_is_said_in_numbers(workplace) -> None:
    session = workplace.open(workplace.bundle()).sessions["early_exit"]
    with pytest.raises(EngineError, match=r"no \d+\.\d MiB left \(\d+ of \d+ MiB free\)"):
        CudaDevice().allocate(1 << 50)
    same(session.run({IMAGE: pictures(2)}), wanted(pictures(2)))


def test_closing_gives_the_memory_back(workplace, place, backend) -> None:
    bundle = workplace.bundle(backend)
    used = []
    for _ in range(4):
        opened = workplace.open(bundle, backend)
        scheduler = Scheduler(SAC, opened.sessions, "graph")
        for size in SIZES:
            scheduler.run(pictures(size), FixedExit(1.0))
        opened.close()
        gc.collect()
        used.append(place.used)
    assert used[-1] <= used[1] + MIB, "the first time kernels are loaded"
    assert not workplace.library(backend).alive


def test_a_session_is_closed_while_threads_use_it(workplace) -> None:
    opened = workplace.open(workplace.bundle())
    session, images = opened.sessions["early_exit"], pictures(4)
    expected = wanted(images)[LOGITS]
    busy = threading.Barrier(5)

    def classify():
        session.run({IMAGE: images})
        busy.wait()
        try:
            while True:
                logits = session.run({IMAGE: images})[LOGITS]
                np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
        except EngineError as error:
            return error.problem

    with ThreadPoolExecutor(4) as pool:
        ends = [pool.submit(classify) for _ in range(4)]
        busy.wait()
        opened.close()
        assert all("closed" in end.result() for end in ends)


def test_the_host_sees_no_target_that_the_graph_did_not_choose(workplace) -> None:
    """Of equal scores the lowest index comes first, in the stand-in as in the runtime."""
    images = np.ones_like(pictures(2))
    for selection in ("host", "graph"):
        bundle = workplace.bundle("tensorrt", selection=selection)
        sessions = workplace.open(bundle).sessions
        outcomes = Scheduler(SAC, sessions, selection).run(images, FixedExit(1.0))
        for outcome in outcomes:
            assert outcome.target_index is not None, TARGET_INDEX
            assert outcome.target_index.tolist() == list(range(SAC.num_targets))
