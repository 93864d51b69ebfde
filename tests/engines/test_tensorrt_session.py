from __future__ import annotations

import gc
import math
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sacvit_deploy.engines.session import sharing_memory
from sacvit_deploy.engines.tensorrt_engine import CudaGraphWarning
from sacvit_deploy.errors import EngineError, MissingDependencyError
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.spec import IMAGE, LOGITS, SCORE
from tests.engines.engine_calls import HANDED_ON, PLAIN, early_exit, refined, rows_of, same, wanted
from tests.engines.fake_cuda import cudaError_t
from tests.fakes import SAC, FakeSession, random_images

BACKENDS = ["tensorrt", "tensorrt-rtx"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.mark.parametrize("options", [None, PLAIN], ids=["graphs", "plain"])
def test_every_batch_gives_what_the_graph_computes(workplace, backend, options) -> None:
    session = early_exit(workplace, backend, options)
    for size in (1, 5, 8, 5, 3, 1, 7):
        images = random_images(size, seed=size)
        same(session.run({IMAGE: images}), images)


def test_the_result_is_the_callers_own(workplace) -> None:
    session = early_exit(workplace)
    first = session.run({IMAGE: random_images(4)})
    before = first[LOGITS].copy()
    session.run({IMAGE: random_images(4, seed=1)})
    np.testing.assert_array_equal(first[LOGITS], before)


def test_memory_is_taken_once_and_given_back(workplace) -> None:
    session = early_exit(workplace)
    used = workplace.gpu.used
    for size in (1, 8, 3, 8):
        session.run({IMAGE: random_images(size)})
    assert workplace.gpu.used == used
    del session
    gc.collect()
    assert (workplace.gpu.used, workplace.gpu.pinned, workplace.gpu.graphs) == (0, {}, {})


def test_engines_share_scratch_memory_of_the_larger(workplace) -> None:
    opened = workplace.open(workplace.bundle())
    assert len(opened.sessions) == 2
    sizes = [block.nbytes for block in workplace.gpu.blocks.values()]
    assert (sizes.count(4096), sizes.count(8192)) == (0, 1)


def test_each_bucket_is_recorded_once_and_replayed(workplace) -> None:
    session = early_exit(workplace)
    for size in (5, 6, 5, 8, 7):
        images = random_images(size, seed=size)
        same(session.run({IMAGE: images}), images)
    assert workplace.library().contexts == 2  # for 6 and for 8
    assert workplace.gpu.launches == 3  # the first run of each is not a replay


def test_rows_that_pad_do_not_cross(workplace) -> None:
    session = early_exit(workplace)
    session.run({IMAGE: random_images(5)})
    session.run_on_device({IMAGE: random_images(5)}, HANDED_ON)
    copied = [size for way, size in workplace.gpu.crossings if way == "in"]
    assert copied == [5 * 3 * 24 * 32 * 4] * 2
    assert workplace.gpu.crossings[-1] == ("out", 5 * 7 * 4)


def test_what_stays_on_the_gpu_takes_no_host_memory(workplace) -> None:
    session = early_exit(workplace)
    session.run_on_device({IMAGE: random_images(1)}, (IMAGE, *HANDED_ON))
    sizes = sorted(array.nbytes for array in workplace.gpu.pinned.values())
    assert sizes == [8 * 7 * 4, 8 * 3 * 24 * 32 * 4]  # logits and images, for the largest batch


def test_batches_of_one_bucket_share_a_context(workplace) -> None:
    session = early_exit(workplace)
    for size in (1, 5, 6, 7, 8):
        session.run({IMAGE: random_images(size)})
    assert workplace.library().contexts == 3  # 1, 6 and 8


def test_without_graphs_one_context_serves_all_shapes(workplace, backend) -> None:
    session = early_exit(workplace, backend, PLAIN)
    for size in (1, 5, 8):
        session.run({IMAGE: random_images(size)})
    assert workplace.library(backend).contexts == 1
    assert workplace.gpu.launches == 0


def test_a_thread_of_its_own_works_on_the_device_of_the_session(workplace) -> None:
    """CUDA's current device is one for each thread, and 0 in a new one."""
    sys.modules["cuda.bindings.runtime"].cudaSetDevice(1)
    session = early_exit(workplace)
    assert session.memory == "tensorrt cuda:1"
    images = random_images(3)
    with ThreadPoolExecutor(1) as pool:
        same(pool.submit(session.run, {IMAGE: images}).result(), images)


def test_what_is_still_used_is_not_recorded_again(workplace, monkeypatch) -> None:
    monkeypatch.setattr("sacvit_deploy.engines.tensorrt_session._MOST_RECORDED", 2)
    session = early_exit(workplace)
    for size in (1, 2, 1, 3, 1):
        images = random_images(size)
        same(session.run({IMAGE: images}), images)
    assert workplace.library().contexts == 3  # that of 2 made room for that of 3


def test_the_oldest_recordings_make_room(workplace, monkeypatch) -> None:
    monkeypatch.setattr("sacvit_deploy.engines.tensorrt_session._MOST_RECORDED", 2)
    session = early_exit(workplace)
    for size in (1, 2, 3, 4, 1):
        images = random_images(size)
        same(session.run({IMAGE: images}), images)
    gc.collect()
    assert len(workplace.gpu.graphs) == 2


def test_an_engine_that_cannot_be_recorded_still_runs(workplace) -> None:
    workplace.library().unrecordable = True
    session = early_exit(workplace)
    with pytest.warns(CudaGraphWarning, match=r"without CUDA graphs: .*stream is capturing"):
        session.run({IMAGE: random_images(3)})
    images = random_images(3, seed=1)
    same(session.run({IMAGE: images}), images)
    assert workplace.gpu.launches == 0


def test_rtx_says_itself_that_it_cannot_be_recorded(workplace) -> None:
    workplace.library("tensorrt-rtx").unrecordable = True
    session = early_exit(workplace, "tensorrt-rtx")
    images = random_images(3)
    with pytest.warns(CudaGraphWarning, match=r"without CUDA graphs: TensorRT-RTX 1.*build-engine"):
        same(session.run({IMAGE: images}), images)


def test_rtx_is_not_asked_where_nothing_is_to_be_recorded(workplace) -> None:
    workplace.library("tensorrt-rtx").unrecordable = True
    early_exit(workplace, "tensorrt-rtx", PLAIN).run({IMAGE: random_images(3)})


def test_too_large_a_batch_is_refused_and_the_next_one_is_not(workplace, backend) -> None:
    session = early_exit(workplace, backend)
    with pytest.raises(EngineError, match=r"batch of 9 .* takes 1 to 8\.\n.*--batch 1:8:9"):
        session.run({IMAGE: random_images(9)})
    images = random_images(2)
    same(session.run({IMAGE: images}), images)


@pytest.mark.parametrize("options", [None, PLAIN], ids=["graphs", "plain"])
def test_a_batch_below_the_profile_is_padded(workplace, options) -> None:
    session = early_exit(workplace, options=options, batch=(4, 4, 8))
    images = random_images(1)
    same(session.run({IMAGE: images}), images)


def test_feeds_are_checked_before_the_gpu_is_used(workplace) -> None:
    session = early_exit(workplace)
    with pytest.raises(EngineError, match="'image' is float64"):
        session.run({IMAGE: random_images(1).astype(np.float64)})
    assert workplace.gpu.crossings == []


def test_a_held_tensor_stays_while_the_session_goes_on(workplace) -> None:
    opened = workplace.open(workplace.bundle())
    first, second = opened.sessions["early_exit"], opened.sessions["refine"]
    images, others = random_images(5), random_images(5, seed=1)
    _, kept = first.run_on_device({IMAGE: images}, (IMAGE, *HANDED_ON))
    used = workplace.gpu.used
    first.run({IMAGE: others})  # gets memory of its own
    assert workplace.gpu.used > used
    found, _ = second.run_on_device(rows_of(kept, [1, 4]), ())
    expected = refined(images[[1, 4]])
    np.testing.assert_array_equal(found[LOGITS], expected[LOGITS])
    np.testing.assert_array_equal(found["target_index"], expected["target_index"])
    used = workplace.gpu.used
    del kept
    for _ in range(3):
        first.run_on_device({IMAGE: images}, (SCORE,))
    assert workplace.gpu.used == used


@pytest.mark.parametrize(
    ("rows", "runs"), [([0, 1, 2, 3, 4], 1), ([0], 1), ([4], 1), ([0, 1, 3, 4], 2), ([0, 2, 4], 3)]
)
def test_rows_that_lie_side_by_side_are_copied_at_once(workplace, rows, runs) -> None:
    opened, images = workplace.open(workplace.bundle()), random_images(5)
    _, kept = opened.sessions["early_exit"].run_on_device({IMAGE: images}, (IMAGE, *HANDED_ON))
    before = len(workplace.gpu.crossings)
    found, _ = opened.sessions["refine"].run_on_device(rows_of(kept, rows), ())
    crossed = workplace.gpu.crossings[before:]
    assert [way for way, _ in crossed] == ["within"] * 4 * runs + ["out"] * 2
    of_one = sum(math.prod(tensor.shape[1:]) * 4 for tensor in kept.values())
    assert sum(size for way, size in crossed if way == "within") == of_one * len(rows)
    np.testing.assert_array_equal(found[LOGITS], refined(images[rows])[LOGITS])


def test_the_second_stage_has_one_context_for_each_of_its_own_sizes(workplace) -> None:
    opened = workplace.open(workplace.bundle())
    first, second = opened.sessions["early_exit"], opened.sessions["refine"]
    before = None
    for size in (4, 6, 8):
        _, kept = first.run_on_device({IMAGE: random_images(size)}, (IMAGE, *HANDED_ON))
        before = before or workplace.library().contexts
        second.run_on_device(rows_of(kept, [1, 3]), ())
    assert before == 1
    assert workplace.library().contexts == 3 + 1  # first stage: 4, 6 and 8; second stage: 2


def test_all_rows_of_a_handle_are_taken_without_naming_them(workplace) -> None:
    opened, images = workplace.open(workplace.bundle()), random_images(3)
    _, kept = opened.sessions["early_exit"].run_on_device({IMAGE: images}, (IMAGE, *HANDED_ON))
    found, _ = opened.sessions["refine"].run_on_device(kept, ())
    np.testing.assert_array_equal(found[LOGITS], refined(images)[LOGITS])


def test_threads_share_a_session(workplace, backend) -> None:
    session = early_exit(workplace, backend)
    images = random_images(24)
    expected = wanted(images)[LOGITS]

    def classify(start):
        size = 1 + start % 3
        arrays, kept = session.run_on_device({IMAGE: images[start : start + size]}, (SCORE,))
        return arrays[LOGITS], kept[SCORE].shape

    with ThreadPoolExecutor(6) as pool:
        for start, (logits, shape) in enumerate(pool.map(classify, range(20))):
            np.testing.assert_array_equal(logits, expected[start : start + len(logits)])
            assert shape == (len(logits), SAC.num_coarse_tokens)


def test_sessions_of_one_bundle_share_memory_and_of_two_runtimes_do_not(workplace) -> None:
    one, other = (workplace.open(workplace.bundle(name), name).sessions for name in BACKENDS)
    assert sharing_memory(one["early_exit"], one["refine"]) is not None
    assert sharing_memory(one["early_exit"], other["refine"]) is None
    assert sharing_memory(one["early_exit"], FakeSession(SAC, "refine")) is None


def test_too_little_memory_is_said_in_numbers(workplace) -> None:
    workplace.gpu.capacity = 1 << 16
    with pytest.raises(EngineError, match=r"no 0\.\d MiB left \(.* MiB free\)\.\n.*--batch"):
        workplace.open(workplace.bundle())


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("create_execution_context", "cannot make a context for .*no room"),
        ("set_tensor_address", "refuses the memory of 'image'"),
        ("set_input_shape", r"refuses 'image' of shape \(3, 3, 24, 32\)"),
        ("execute_async_v3", "failed to run .*execute_async_v3 went wrong"),
    ],
)
def test_what_the_library_refuses_is_one_error_and_passes(workplace, backend, method, says) -> None:
    session = early_exit(workplace, backend)
    workplace.library(backend).refuse.add(method)
    with pytest.raises(EngineError, match=says):
        session.run({IMAGE: random_images(3)})
    workplace.library(backend).refuse.clear()
    images = random_images(3)
    same(session.run({IMAGE: images}), images)


@pytest.mark.parametrize("function", ["cudaStreamSynchronize", "cudaMemcpyAsync"])
def test_a_cuda_error_names_the_call_and_the_code(workplace, function) -> None:
    session = early_exit(workplace)
    workplace.gpu.fail[function] = cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(EngineError, match=f"{function}: text of 700 .cudaErrorIllegalAddress"):
        session.run({IMAGE: random_images(3)})


def test_no_usable_gpu_is_said_when_the_engine_is_opened(workplace) -> None:
    workplace.gpu.fail["cudaStreamCreateWithFlags"] = cudaError_t.cudaErrorInvalidValue
    with pytest.raises(EngineError, match=r"cudaErrorInvalidValue.*\n.*doctor"):
        workplace.open(workplace.bundle())


def test_cuda_bindings_are_asked_for_by_name(workplace, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingDependencyError, match="pip install 'cuda-bindings"):
        workplace.open(workplace.bundle())


@pytest.mark.parametrize("options", [None, PLAIN], ids=["graphs", "plain"])
def test_closing_gives_everything_back(workplace, backend, options) -> None:
    opened = workplace.open(workplace.bundle(backend), backend, options)
    early, refine = opened.sessions["early_exit"], opened.sessions["refine"]
    _, kept = early.run_on_device({IMAGE: random_images(3)}, (IMAGE, *HANDED_ON))
    refine.run_on_device(rows_of(kept, [1]), ())
    early.run({IMAGE: random_images(5)})
    opened.close()
    assert workplace.gpu.is_untouched
    assert not workplace.library(backend).alive
    opened.close()


def test_the_last_session_closes_what_they_share(workplace) -> None:
    sessions = workplace.open(workplace.bundle()).sessions
    sessions["refine"].close()
    assert len(workplace.gpu.streams) == 1
    images = random_images(2)
    same(sessions["early_exit"].run({IMAGE: images}), images)
    sessions["early_exit"].close()
    assert workplace.gpu.is_untouched


def test_a_closed_session_says_so(workplace, backend) -> None:
    session = early_exit(workplace, backend)
    provider = session.provider
    session.close()
    says = r"early_exit.*\.engine was used after it was closed\.\n"
    with pytest.raises(EngineError, match=says):
        session.run({IMAGE: random_images(1)})
    with pytest.raises(EngineError, match=says):
        session.run_on_device({IMAGE: random_images(1)}, (SCORE,))
    assert session.provider == provider


def test_a_handle_may_outlive_its_session(workplace) -> None:
    opened = workplace.open(workplace.bundle())
    early, refine = opened.sessions["early_exit"], opened.sessions["refine"]
    _, kept = early.run_on_device({IMAGE: random_images(3)}, (IMAGE, *HANDED_ON))
    early.close()
    assert kept[SCORE].shape == (3, SAC.num_coarse_tokens)
    with pytest.raises(EngineError, match="memory of a session was used after it was closed"):
        refine.run(rows_of(kept, [1]))
    refine.close()
    assert workplace.gpu.is_untouched
    del kept
    gc.collect()


def test_a_call_that_failed_leaves_nothing_behind(workplace) -> None:
    session = early_exit(workplace, roles=("early_exit", "refine"))
    workplace.gpu.fail["cudaMemcpyAsync"] = cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(EngineError, match="cudaMemcpyAsync"):
        session.run({IMAGE: random_images(3)})
    session.run({IMAGE: random_images(3)})
    session.close()
    gc.collect()
    assert workplace.gpu.is_untouched


@pytest.mark.parametrize("function", ["cudaSetDevice", "cudaStreamSynchronize"])
def test_a_device_that_failed_can_be_closed(workplace, function) -> None:
    opened = workplace.open(workplace.bundle())
    workplace.gpu.fail[function] = cudaError_t.cudaErrorIllegalAddress
    opened.close()
    assert workplace.gpu.is_untouched


def test_threads_at_work_end_before_a_session_is_closed(workplace, backend) -> None:
    opened = workplace.open(workplace.bundle(backend), backend)
    session, images = opened.sessions["early_exit"], random_images(4)
    expected = wanted(images)[LOGITS]

    def classify(_):
        try:
            return session.run({IMAGE: images})[LOGITS]
        except EngineError as error:
            assert "closed" in error.problem  # noqa: PT017
            return expected

    with ThreadPoolExecutor(4) as pool:
        results = pool.map(classify, range(40))
        pool.submit(opened.close).result()
        for logits in results:
            np.testing.assert_array_equal(logits, expected)
    assert workplace.gpu.is_untouched


def test_nothing_warns(workplace, backend) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        early_exit(workplace, backend).run({IMAGE: random_images(2)})


def test_prepared_sizes_are_those_that_are_recorded(workplace) -> None:
    bundle = workplace.bundle()
    session, plain = (workplace.open(bundle, options=o).sessions["refine"] for o in (None, PLAIN))
    assert session.prepared_sizes(8) == [1, 2, 3, 4, 6, 8]
    assert session.prepared_sizes(5) == [1, 2, 3, 4, 5]
    assert plain.prepared_sizes(5) == [5]


@pytest.mark.parametrize("selection", ["host", "graph"])
def test_after_the_warm_up_every_batch_is_a_replay(workplace, selection) -> None:
    bundle = workplace.bundle(selection=selection)
    opened, images = workplace.open(bundle), random_images(6)
    with Pipeline(bundle.manifest, opened) as pipeline:
        pipeline.warm_up([6])
        contexts, launches = workplace.library().contexts, workplace.gpu.launches
        assert (contexts, launches) == (1 + 5, 0)  # first stage: 6; second stage: 1, 2, 3, 4, 6
        for eta in (0.14, 0.16, 0.18, 0.2, 0.22, 1.0):
            pipeline.outcomes(images, eta)
        assert workplace.library().contexts == contexts
        assert workplace.gpu.launches > 6
        assert pipeline.stats.snapshot().pictures == 0


def test_rtx_compiles_in_the_warm_up(workplace) -> None:
    bundle = workplace.bundle("tensorrt-rtx")
    pipeline = Pipeline(bundle.manifest, workplace.open(bundle, "tensorrt-rtx"))
    pipeline.warm_up()
    assert len(list((workplace.folder / "cache").rglob("*.rtx-cache"))) == 2


def test_a_warm_up_above_the_engines_batch_is_refused(workplace) -> None:
    bundle = workplace.bundle()
    with pytest.raises(EngineError, match=r"batch of 9 .* takes 1 to 8"):
        Pipeline(bundle.manifest, workplace.open(bundle)).warm_up([1, 9])
