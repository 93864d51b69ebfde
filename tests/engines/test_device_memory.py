from __future__ import annotations

import gc

import pytest

from sacvit_deploy.engines.device_memory import CudaDevice
from sacvit_deploy.errors import EngineError
from tests.engines.fake_cuda import cudaError_t


@pytest.fixture
def device(workplace) -> CudaDevice:
    return CudaDevice()


def fetched(device, buffer):
    array = device.pinned(buffer.size)
    device.copy_out(array, buffer.address)
    device.synchronize()
    return array


def staged(device, values):
    array = device.pinned(len(values))
    array[:] = values
    return array


def test_new_memory_is_zero(device) -> None:
    assert fetched(device, device.allocate(5)).tolist() == [0] * 5


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_memory_goes_with_its_last_owner(device, workplace, size) -> None:
    buffer, array = device.allocate(size), device.pinned(size)
    view = array[:1]
    assert len(workplace.gpu.blocks) == len(workplace.gpu.pinned) == 1
    del buffer, array
    gc.collect()
    assert len(workplace.gpu.blocks) == 0
    assert len(workplace.gpu.pinned) == 1  # the view still needs it
    del view
    gc.collect()
    assert len(workplace.gpu.pinned) == 0


def test_copies_go_round(device) -> None:
    source, target = device.allocate(4), device.allocate(4)
    values = staged(device, [1, 2, 3, 4])
    device.copy_in(source.address, values)
    device.copy_within(target.address + 1, source.address, 3)
    assert fetched(device, target).tolist() == [0, 1, 2, 3]


def test_recorded_work_runs_when_it_is_launched(device, workplace) -> None:
    buffer, values = device.allocate(2), staged(device, [1, 2])
    graph = device.record(lambda: device.copy_in(buffer.address, values))
    assert fetched(device, buffer).tolist() == [0, 0]
    values[:] = 7
    device.launch(graph)
    assert fetched(device, buffer).tolist() == [7, 7]
    del graph
    gc.collect()
    assert workplace.gpu.graphs == {}


def test_a_failed_recording_leaves_the_stream_usable(device, workplace) -> None:
    with pytest.raises(EngineError, match="cudaStreamSynchronize: text of 900"):
        device.record(device.synchronize)
    assert workplace.gpu.graphs == {}
    assert fetched(device, device.allocate(2)).tolist() == [0, 0]


def test_a_recording_that_cannot_be_made_runnable_is_freed(device, workplace) -> None:
    buffer = device.allocate(2)
    workplace.gpu.fail["cudaGraphInstantiate"] = cudaError_t.cudaErrorInvalidValue
    with pytest.raises(EngineError, match="cudaGraphInstantiate"):
        device.record(lambda: device.copy_within(buffer.address, buffer.address, 1))
    assert workplace.gpu.graphs == {}


def test_a_recording_of_nothing_is_refused(device, workplace) -> None:
    with pytest.raises(EngineError, match="Nothing was put on the stream"):
        device.record(lambda: None)
    assert workplace.gpu.graphs == {}


def test_memory_that_ran_out_is_said_without_numbers_if_none_are_known(device, workplace) -> None:
    workplace.gpu.fail["cudaMemGetInfo"] = cudaError_t.cudaErrorInvalidValue
    with pytest.raises(EngineError, match=r"no 1048576\.0 MiB left\.\n"):
        device.allocate(1 << 40)


def test_mapped_memory_is_read_in_place(device, workplace) -> None:
    buffer, array = device.mapped(4)
    assert array.tolist() == [0] * 4
    array[:] = [1, 2, 3, 4]
    target = device.allocate(4)
    device.copy_within(target.address, buffer.address, 4)
    assert fetched(device, target).tolist() == [1, 2, 3, 4]
    del array
    gc.collect()
    assert len(workplace.gpu.mapped) == 1  # the buffer still needs it
    buffer.free()
    gc.collect()
    assert not workplace.gpu.mapped
    with pytest.raises(EngineError, match="closed"):
        buffer.address  # noqa: B018


def test_mapped_memory_outlives_the_buffer_while_it_is_looked_at(device, workplace) -> None:
    buffer, array = device.mapped(4)
    buffer.free()
    array[:] = 1
    assert len(workplace.gpu.pinned) == 1
    del array
    gc.collect()
    assert workplace.gpu.pinned == {}


@pytest.mark.parametrize("integrated", [True, False])
def test_the_driver_says_whether_memory_is_shared(device, workplace, integrated) -> None:
    workplace.gpu.integrated = integrated
    assert device.is_integrated is integrated


def test_garbage_does_not_break_a_recording(device, workplace) -> None:
    """A cycle is freed whenever it is found, and no recording survives a free."""
    buffer, others, threshold = device.allocate(2), [device.allocate(8)], gc.get_threshold()

    def enqueue() -> None:
        cycle: list[object] = [others.pop()]
        cycle.append(cycle)
        del cycle
        _ = [[] for _ in range(1000)]  # enough for several collections
        device.copy_within(buffer.address, buffer.address, 1)

    gc.set_threshold(10)
    try:
        device.record(enqueue)
    finally:
        gc.set_threshold(*threshold)
    assert gc.isenabled()
    gc.collect()
    assert len(workplace.gpu.blocks) == 1
