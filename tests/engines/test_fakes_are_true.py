"""The fakes have no name that the real modules lack."""

from __future__ import annotations

import enum
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tests.engines import fake_tensorrt as fakes
from tests.engines.fake_cuda import Gpu, fake_cuda
from tests.engines.fake_tensorrt import fake_tensorrt
from tests.fakes import SAC

CLASSES = {
    "Runtime": fakes.Runtime,
    "ICudaEngine": fakes.ICudaEngine,
    "IExecutionContext": fakes.IExecutionContext,
    "ILogger": fakes.ILogger,
    "DataType": fakes.DataType,
    "TensorIOMode": fakes.TensorIOMode,
    "ExecutionContextAllocationStrategy": fakes.ExecutionContextAllocationStrategy,
}
RTX_CLASSES = {
    **CLASSES,
    "ICudaEngine": fakes.RtxEngine,
    "IExecutionContext": fakes.RtxContext,
    "IRuntimeConfig": fakes.IRuntimeConfig,
    "IRuntimeCache": fakes.IRuntimeCache,
    "CudaGraphStrategy": fakes.CudaGraphStrategy,
    "DynamicShapesKernelSpecializationStrategy": fakes.DynamicShapesKernelSpecializationStrategy,
}


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def names(cls: type) -> set[str]:
    """Public names of a class; of an enumeration, only its members."""
    return set(cls.__members__) if issubclass(cls, enum.Enum) else public(cls)


def stubbed_names() -> dict[str, set[str]]:
    """Names in each class of the stubs, which are not valid Python."""
    file = Path(sys.prefix, "stubs", "tensorrt_bindings", "tensorrt.pyi")
    if not file.is_file():
        pytest.skip(f"needs tensorrt-stubs in {file.parents[1]}; make test installs them there")
    parts = re.split(r"^class (\w+)", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    member = re.compile(r"^    (?:def |class )?(\w+)", re.MULTILINE)
    return {
        name: set(member.findall(body)) for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_the_fake_of_rtx_has_only_real_names() -> None:
    real = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    module = fake_tensorrt(Gpu(), SAC, rtx=True)
    assert public(module) - {"library"} <= public(real)
    for name, cls in RTX_CLASSES.items():
        assert names(cls) <= public(getattr(real, name)), name


def test_the_fake_of_tensorrt_has_only_names_of_its_stubs() -> None:
    real = stubbed_names()
    assert public(fake_tensorrt(Gpu(), SAC)) - {"library"} <= set(real)
    for name, cls in CLASSES.items():
        assert names(cls) <= real[name], name


def test_the_fake_of_cuda_has_only_real_names() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    module = fake_cuda(Gpu())
    assert public(module) <= public(real)
    assert module.cudaHostAllocMapped == real.cudaHostAllocMapped
    for name in ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr"):
        members = {member.name: int(member) for member in getattr(module, name)}
        assert members.items() <= {m.name: int(m) for m in getattr(real, name)}.items()


def test_the_fakes_refuse_what_they_do_not_know() -> None:
    module = fake_tensorrt(Gpu(), SAC, rtx=True)
    with pytest.raises(AttributeError):
        module.Runtime(None).dla_core = 1
    with pytest.raises(AttributeError):
        module.BuilderFlag  # noqa: B018
    assert not hasattr(fake_tensorrt(Gpu(), SAC), "CudaGraphStrategy")
    assert isinstance(module, types.ModuleType)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cudaMalloc", (16,)),
        ("cudaMallocHost", (16,)),
        ("cudaHostAlloc", (16, 2)),
        ("cudaHostGetDevicePointer", (4096, 0)),
        ("cudaMemGetInfo", ()),
        ("cudaGetDevice", ()),
        ("cudaSetDevice", (0,)),
        ("cudaDeviceGetAttribute", ("cudaDevAttrIntegrated", 0)),
        ("cudaStreamCreateWithFlags", (1,)),
        ("cudaStreamSynchronize", (1,)),
        ("cudaMemcpyAsync", (4096, 8192, 0, "cudaMemcpyDefault", 1)),
        ("cudaMemsetAsync", (4096, 0, 0, 1)),
    ],
)
def test_calls_give_as_many_results_as_the_real_ones(name, arguments) -> None:
    """Without a driver the real ones fail, and give a place for each result all the same."""
    real = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    if int(real.cudaGetDevice()[0]) == 0:
        pytest.skip("there is a driver, and these addresses are not its own")
    gpu = Gpu(streams={1})
    fake = fake_cuda(gpu)
    gpu.blocks[4096], gpu.blocks[8192] = np.zeros(1, np.uint8), np.zeros(1, np.uint8)
    gpu.pinned[4096] = gpu.blocks[4096]
    members = {"cudaDevAttrIntegrated": "cudaDeviceAttr", "cudaMemcpyDefault": "cudaMemcpyKind"}

    def results(module):
        given = [getattr(getattr(module, members[a]), a) if a in members else a for a in arguments]
        return getattr(module, name)(*given)

    assert len(results(fake)) == len(results(real))
