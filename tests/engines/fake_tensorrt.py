"""`tensorrt` or `tensorrt_rtx`, with engines that compute what `FakeSession` computes.

A plan is a line of JSON. Only names of the real modules exist, and nothing can be set that is not
there; a test compares them where they are installed.
"""

from __future__ import annotations

import enum
import json
import math
import types
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.fakes import FakeSession

if TYPE_CHECKING:
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.records import GraphEntry
    from sacvit_deploy.spec import Selection
    from tests.engines.fake_cuda import Gpu

SCRATCH_BYTES = {"early_exit": 4096, "refine": 8192}  # enough for batches of 8


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT64 = "int64"
    UINT8 = "uint8"


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    VERBOSE = None

    def __init__(self) -> None:
        pass


def plan_for(
    graph: GraphEntry, config: ModelConfig, batch: tuple[int, int, int], **other: Any
) -> bytes:
    """A plan of a graph; `other` replaces what its tensors or profile would be."""
    tensors = [[s.name, s.dtype, list(s.shape), "INPUT"] for s in graph.inputs]
    tensors += [[s.name, s.dtype, list(s.shape), "OUTPUT"] for s in graph.outputs]
    values = {"role": graph.role, "tensors": tensors, "batch": batch, "family": config.family}
    return json.dumps({**values, **other}).encode()


def fake_tensorrt(
    gpu: Gpu, config: ModelConfig, *, rtx: bool = False, version: str = "10.3.0"
) -> Any:
    """One of the two modules, on a GPU."""
    library = _Library(gpu, config, rtx)
    module: Any = types.ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    module.__version__ = version
    module.ILogger = ILogger
    module.Runtime = lambda logger: library.new_runtime(logger)
    module.DataType = DataType
    module.TensorIOMode = TensorIOMode
    module.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    module.library = library
    if rtx:
        module.CudaGraphStrategy = CudaGraphStrategy
        module.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
    return module


class _Library:
    """The state of the fake, for the test.

    Attributes:
        context: Class of its execution contexts.
        contexts: How many contexts were made.
        alive: Runtimes, engines and contexts that are still held.
        refuse: Names of methods that return False or None from now on; `Runtime` raises, as the
            constructor of the bindings does.
        unrecordable: Contexts synchronise while they run, which no graph can hold, and those of
            TensorRT-RTX say so.
    """

    def __init__(self, gpu: Gpu, config: ModelConfig, rtx: bool) -> None:
        self.gpu = gpu
        self.config = config
        self.rtx = rtx
        self.context: type[IExecutionContext] = RtxContext if rtx else IExecutionContext
        self.contexts = 0
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.settings: list[IRuntimeConfig] = []
        self.refuse: set[str] = set()
        self.unrecordable = False

    def new_runtime(self, logger: Any) -> Runtime:
        """The first logger serves all, as long as a runtime of it lives."""
        runtimes = (thing for thing in self.alive if isinstance(thing, Runtime))
        first: Any = next((runtime._logger for runtime in runtimes), logger)
        if first is not logger:
            first.log(ILogger.WARNING, "The current new logger is ignored")
        if "Runtime" in self.refuse:
            first.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return Runtime(self, first)


class Runtime:
    __slots__ = ("__weakref__", "_library", "_logger", "engine_host_code_allowed")

    def __init__(self, library: _Library, logger: ILogger) -> None:
        self._library = library
        self._logger = logger
        self.engine_host_code_allowed = False
        library.alive.add(self)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        try:
            values = json.loads(serialized_engine)
        except ValueError:
            self._logger.log(ILogger.ERROR, "the plan ends too early")  # type: ignore[attr-defined]
            return None
        return (RtxEngine if self._library.rtx else ICudaEngine)(
            self._library, self._logger, values
        )


class ICudaEngine:
    __slots__ = ("__weakref__", "_library", "_logger", "_tensors", "_values")

    def __init__(self, library: _Library, logger: Any, values: dict[str, Any]) -> None:
        self._library = library
        self._logger = logger
        self._values = values
        self._tensors = {name: rest for name, *rest in values["tensors"]}
        library.alive.add(self)

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def device_memory_size_v2(self) -> int:
        return SCRATCH_BYTES[self._values["role"]]

    def get_tensor_name(self, index: int) -> str:
        return str(list(self._tensors)[index])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode[self._tensors[name][2]]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._tensors[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(side, str) else side for side in self._tensors[name][1])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert (profile_index, self.get_tensor_mode(name)) == (0, TensorIOMode.INPUT)
        shape = self._tensors[name][1]
        return [
            tuple(size if isinstance(side, str) else side for side in shape)
            for size in self._values["batch"]
        ]

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
        if "create_execution_context" in self._library.refuse:
            self._logger.log(ILogger.ERROR, "no room for a context")
            return None
        if isinstance(strategy, IRuntimeConfig):
            strategy = strategy.get_execution_context_allocation_strategy()
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self._library.contexts += 1
        return self._library.context(self, self._library, self._logger)


class RtxEngine(ICudaEngine):
    __slots__ = ()

    def create_runtime_config(self) -> IRuntimeConfig:
        settings = IRuntimeConfig(self._library)
        self._library.settings.append(settings)
        return settings


class IRuntimeConfig:
    __slots__ = (
        "_cache",
        "_strategy",
        "cuda_graph_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
    )

    def __init__(self, library: _Library) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self._cache: IRuntimeCache | None = None
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        return self._strategy

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class IRuntimeCache:
    __slots__ = ("_content",)

    def __init__(self) -> None:
        self._content = b"kernels"

    def serialize(self) -> bytes:
        return self._content

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"kernels"):
            return False
        self._content = blob
        return True


class IExecutionContext:
    """Refuses to run before it has shapes, addresses and scratch memory."""

    __slots__ = (
        "__weakref__",
        "_addresses",
        "_engine",
        "_library",
        "_logger",
        "_scratch",
        "_shapes",
    )

    def __init__(self, engine: ICudaEngine, library: _Library, logger: Any) -> None:
        self._engine = engine
        self._library = library
        self._logger = logger
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        library.alive.add(self)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self._engine.device_memory_size_v2
        assert memory % 256 == 0
        self._scratch = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        self._shapes[name] = tuple(shape)
        inside = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        return inside and not self._refused("set_input_shape")

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory % 256 == 0
        self._addresses[name] = memory
        return not self._refused("set_tensor_address")

    def execute_async_v3(self, stream_handle: int) -> bool:
        library = self._library
        assert stream_handle
        assert self._addresses.keys() == self._engine._tensors.keys()
        library.gpu.view(*self._scratch)
        if self._refused("execute_async_v3"):
            return False
        if library.unrecordable and library.gpu.recording is not None:
            self._logger.log(ILogger.ERROR, "operation not permitted when stream is capturing")
            return False
        shapes = dict(self._shapes)
        library.gpu.put(lambda: self._compute(shapes))
        return True

    def _refused(self, name: str) -> bool:
        if name in self._library.refuse:
            said = f"{name} went wrong"
            self._logger.log(ILogger.ERROR, said)
        return name in self._library.refuse

    def _compute(self, shapes: dict[str, tuple[int, ...]]) -> None:
        feeds = {name: self._array(name, shape).copy() for name, shape in shapes.items()}
        selection: Selection = "graph" if "score" in feeds else "host"
        session = FakeSession(self._library.config, self._engine._values["role"], selection)
        for name, array in session.run(feeds).items():
            self._array(name, array.shape)[...] = array

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(self._engine.get_tensor_dtype(name).value)
        view = self._library.gpu.view(self._addresses[name], math.prod(shape) * dtype.itemsize)
        return view.view(dtype).reshape(shape)


class RtxContext(IExecutionContext):
    __slots__ = ()

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream
        assert self._addresses.keys() == self._engine._tensors.keys()
        return not self._library.unrecordable
