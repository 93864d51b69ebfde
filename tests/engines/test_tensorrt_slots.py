"""Memory that a caller may fill, and when it is used again."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest

from sacvit_deploy.errors import EngineError
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.spec import IMAGE, LOGITS, SCORE
from tests.engines.engine_calls import HANDED_ON, PLAIN, early_exit, refined, rows_of, same, wanted
from tests.fakes import SAC, fake_manifest, random_images, random_pictures


def filled(session, images):
    array = session.input_array(IMAGE, len(images))
    array[...] = images
    return array


def ways(workplace, way):
    return [size for each, size in workplace.gpu.crossings if each == way]


@pytest.mark.parametrize("integrated", [False, True], ids=["discrete", "integrated"])
@pytest.mark.parametrize("options", [None, PLAIN], ids=["graphs", "plain"])
def test_an_array_of_the_session_gives_what_another_gives(workplace, integrated, options) -> None:
    workplace.gpu.integrated = integrated
    session = early_exit(workplace, options=options)
    for size in (1, 5, 8, 3):
        images = random_images(size, seed=size)
        same(session.run({IMAGE: filled(session, images)}), images)
        same(session.run({IMAGE: images}), images)


def test_an_array_of_the_session_is_copied_once_from_where_it_is(workplace) -> None:
    session = early_exit(workplace)
    session.run({IMAGE: filled(session, random_images(3))})
    assert ways(workplace, "in") == [3 * 3 * 24 * 32 * 4]
    assert IMAGE not in session._staging


@pytest.mark.parametrize("is_own", [True, False])
def test_an_integrated_gpu_reads_pictures_where_the_host_wrote_them(workplace, is_own) -> None:
    workplace.gpu.integrated = True
    opened, images = workplace.open(workplace.bundle()), random_images(5)
    session = opened.sessions["early_exit"]
    given = filled(session, images) if is_own else images
    found, kept = session.run_on_device({IMAGE: given}, (IMAGE, *HANDED_ON))
    np.testing.assert_array_equal(found[LOGITS], wanted(images)[LOGITS])
    assert ways(workplace, "in") == []
    answer, _ = opened.sessions["refine"].run_on_device(rows_of(kept, [1, 4]), ())
    np.testing.assert_array_equal(answer[LOGITS], refined(images[[1, 4]])[LOGITS])
    del given, kept, found
    opened.close()
    assert workplace.gpu.is_untouched


@pytest.mark.parametrize("integrated", [False, True], ids=["discrete", "integrated"])
def test_an_array_is_the_callers_own_while_a_view_of_it_lives(workplace, integrated) -> None:
    workplace.gpu.integrated = integrated
    session, images = early_exit(workplace), random_images(4)
    view = filled(session, images)[1:]
    gc.collect()
    for seed in range(1, 4):
        others = random_images(4, seed=seed)
        same(session.run({IMAGE: filled(session, others)}), others)
        same(session.run({IMAGE: others}), others)
    np.testing.assert_array_equal(view, images[1:])
    same(session.run({IMAGE: view}), images[1:])


def test_a_second_run_of_an_array_leaves_the_tensors_of_the_first(workplace) -> None:
    session, images = early_exit(workplace), random_images(4)
    array = filled(session, images)
    _, kept = session.run_on_device({IMAGE: array}, (SCORE,))
    array[...] = random_images(4, seed=1)
    session.run({IMAGE: array})
    handle = kept[SCORE]
    before = session._device.pinned(math.prod(handle.shape) * 4)
    session._device.copy_out(before, handle.buffer.address)
    session._device.synchronize()
    np.testing.assert_array_equal(before.view(np.float32), wanted(images)[SCORE].ravel())


def test_arrays_and_calls_take_one_slot_in_turn(workplace) -> None:
    opened = workplace.open(workplace.bundle())
    pipeline = Pipeline(fake_manifest(SAC, "graph"), opened)
    pictures = random_pictures(20)
    pipeline(pictures, batch_size=8, eta=1.0)
    used = workplace.gpu.used
    for size in (1, 8, 5):
        pipeline(pictures, batch_size=size, eta=1.0)
        pipeline(pictures[0])
    assert workplace.gpu.used == used
    assert [len(session._slots) for session in opened.sessions.values()] == [1, 1]
    assert IMAGE not in opened.sessions["early_exit"]._staging


def test_an_array_that_was_never_run_is_no_loss(workplace) -> None:
    session = early_exit(workplace)
    for _ in range(3):
        session.input_array(IMAGE, 2)
    assert len(session._slots) == 1
    assert not session._handed_out


def test_too_large_an_array_and_a_closed_session_are_refused(workplace) -> None:
    session = early_exit(workplace)
    with pytest.raises(EngineError, match=r"batch of 9 .* takes 1 to 8"):
        session.input_array(IMAGE, 9)
    array = filled(session, random_images(2))
    session.close()
    array[...] = 1  # still the caller's
    for call in (lambda: session.run({IMAGE: array}), lambda: session.input_array(IMAGE, 1)):
        with pytest.raises(EngineError, match="used after it was closed"):
            call()


@pytest.mark.parametrize("eta", [0.18, 1.0])
def test_a_stream_takes_one_slot_too(workplace, eta) -> None:
    opened = workplace.open(workplace.bundle())
    pipeline = Pipeline(fake_manifest(SAC, "graph"), opened)
    pictures = random_pictures(20)
    found = list(pipeline.stream(pictures, batch_size=4, eta=eta))
    assert [r.stage for r in found] == [r.stage for r in pipeline(pictures, eta=eta)]
    assert [len(session._slots) for session in opened.sessions.values()] == [1, 1]
    assert IMAGE not in opened.sessions["early_exit"]._staging
