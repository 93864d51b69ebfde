"""One engine of a bundle, loaded: its batch sizes, contexts and compiled kernels."""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sacvit_deploy.bundle import Bundle, build_command
from sacvit_deploy.engines.machine import cache_folder
from sacvit_deploy.errors import EngineError, warn_caller
from sacvit_deploy.files import open_regular, write_whole

if TYPE_CHECKING:
    from sacvit_deploy.engines.compatibility import CheckedPlan
    from sacvit_deploy.engines.session import SessionOptions
    from sacvit_deploy.spec import TensorSpec


_PROFILE = 0  # the builder makes one
_DTYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "uint8": "UINT8"}


class CacheWarning(UserWarning):
    """Compiled kernels could not be kept for the next start."""


class CudaGraphWarning(UserWarning):
    """An engine cannot be recorded, and is launched kernel by kernel."""


@dataclass(frozen=True)
class BatchBuckets:
    """The sizes of one dynamic axis.

    Attributes:
        smallest: The engine's lower limit; smaller sizes are padded.
        largest: The engine's upper limit; larger sizes are refused.
        recorded: Sizes in use, ascending; empty where any size within the limits is.
    """

    smallest: int
    largest: int
    recorded: tuple[int, ...] = ()

    @classmethod
    def of_range(cls, smallest: int, largest: int) -> BatchBuckets:
        """Buckets within the limits of an engine, both limits included.

        There are two for each doubling, so that less than a third of a batch is padding.
        """
        sizes = {factor << bit for factor in (1, 3) for bit in range(largest.bit_length())}
        inside = {size for size in sizes if smallest <= size <= largest}
        return cls(smallest, largest, tuple(sorted(inside | {smallest, largest})))

    def padded(self, size: int) -> int:
        """The size to run `size` rows with; `EngineError` above the engine's limit."""
        if size > self.largest:
            raise EngineError(
                f"A batch of {size} was given; the engine takes {self.smallest} to {self.largest}.",
                f"Use smaller batches, or build it for larger ones: sacvit-deploy build-engine "
                f"BUNDLE --batch {self.smallest}:{self.largest}:{size}",
            )
        if not self.recorded:
            return max(size, self.smallest)
        return self.recorded[bisect_left(self.recorded, size)]


class TensorRTEngine:
    """One engine of a bundle on this machine.

    Attributes:
        entry: Its description in the bundle.
        library: The library that loaded it.
        graph: The graph it was built from: names, dtypes and shapes of inputs and outputs.
        buckets: Sizes of each dynamic axis, by the name of the axis.
        scratch_bytes: Device memory that a context needs while it runs.
        rebuild: The fix if it turns out to be unusable.
    """

    def __init__(self, bundle: Bundle, plan: CheckedPlan, options: SessionOptions) -> None:
        """Deserialise a plan of a bundle.

        Raises:
            EngineError: The library refuses it, or it does not belong to the bundle's graph.
        """
        self.entry = entry = plan.entry
        self.graph = bundle.graph(entry.role, entry.precision)
        self.rebuild = f"Build it again: {build_command(bundle, entry)}"
        self.library = plan.library
        self._trt = plan.library.module
        self._runtime = plan.library.runtime()
        # A version-compatible plan brings code of its own. Its hash says that it is the file which
        # was built.
        if entry.flags.version_compatible:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan.content)
        if self._engine is None:
            raise self.failure(f"cannot load the {len(plan.content)} bytes of", self.rebuild)
        self._check_tensors()
        self.buckets = self._buckets(options)
        self.scratch_bytes = int(self._engine.device_memory_size_v2)
        self._settings, self._cache, self._runs = None, None, 0
        if plan.library.is_rtx:
            file = cache_folder(bundle) / f"{entry.role}.{entry.precision}.rtx-cache"
            self._settings = self._rtx_settings(options)
            self._cache = _KernelCache(file, self._settings)

    def create_context(self) -> Any:
        """An `IExecutionContext`, which needs scratch memory before it runs."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(
            strategy if self._settings is None else self._settings
        )
        if context is None:
            fix = "Close other programs that use the GPU, or build for a smaller largest batch."
            raise self.failure("cannot make a context for", fix)
        return context

    def failure(self, what: str, fix: str) -> EngineError:
        """An error with the library's own last messages."""
        log = self.library.log
        said = "; ".join(log.last_errors(3)) or "it does not say why"
        log.lines.clear()
        return EngineError(f"{self.library} {what} {self.entry.file}: {said}.", fix)

    def check_recordable(self, context: Any, stream: int) -> None:
        """Warn if TensorRT-RTX cannot record a context; `context` has its shapes and memory."""
        if self.library.is_rtx and not context.is_stream_capturable(stream):
            warn_caller(
                f"{self.entry.file} runs without CUDA graphs: {self.library} cannot record it. "
                f"{self.rebuild}",
                CudaGraphWarning,
            )

    def keep_compiled(self, *, new_shapes: bool) -> None:
        """Save the kernels that TensorRT-RTX has compiled up to this run, for the next start.

        Some come later than the run that needs them, compiled by a thread of the library. So the
        1st, 2nd, 4th, 8th, ... run saves too, and `close`.
        """
        self._runs += 1
        if self._cache is not None and (new_shapes or self._runs & (self._runs - 1) == 0):
            self._cache.write()

    def close(self) -> None:
        """Release the engine, once no context of it is left."""
        if self._cache is not None and self._runs:
            self._cache.write()
        self._engine = self._settings = self._cache = self._runtime = None

    def _check_tensors(self) -> None:
        """Check that names, directions, dtypes and shapes are those of the graph."""
        engine = self._engine
        there = set(map(engine.get_tensor_name, range(engine.num_io_tensors)))
        wanted = {spec.name: (spec, "INPUT") for spec in self.graph.inputs}
        wanted |= {spec.name: (spec, "OUTPUT") for spec in self.graph.outputs}
        odd = {name for name in there & wanted.keys() if not self._fits(*wanted[name])}
        if differing := ", ".join(sorted(odd | (there ^ wanted.keys()))):
            raise EngineError(
                f"The engine {self.entry.file} was not built from the bundle's {self.graph.file}: "
                f"they differ in {differing}.",
                self.rebuild,
            )

    def _fits(self, spec: TensorSpec, mode: str) -> bool:
        """Whether a tensor of the engine is that of the graph; -1 is any side.

        A dynamic side may be fixed where the engine was built for one batch only.
        """
        engine, name = self._engine, spec.name
        smallest, _, largest = self.entry.batch
        batch = smallest if smallest == largest else -1
        sides = [(-1, batch) if isinstance(side, str) else (-1, side) for side in spec.shape]
        shape = tuple(engine.get_tensor_shape(name))
        return (
            engine.get_tensor_mode(name).name == mode
            and engine.get_tensor_dtype(name).name == _DTYPES[spec.dtype]
            and len(shape) == len(sides)
            and all(side in allowed for side, allowed in zip(shape, sides, strict=True))
        )

    def _buckets(self, options: SessionOptions) -> dict[str, BatchBuckets]:
        """The profile's range of every dynamic axis; inputs that share an axis share its range."""
        ranges: dict[str, tuple[int, int]] = {}
        for spec in self.graph.inputs:
            low, _, high = self._engine.get_tensor_profile_shape(spec.name, _PROFILE)
            for axis, smallest, largest in zip(spec.shape, low, high, strict=True):
                if isinstance(axis, str):
                    before = ranges.get(axis, (smallest, largest))
                    ranges[axis] = max(before[0], smallest), min(before[1], largest)
        buckets = BatchBuckets.of_range if options.cuda_graphs else BatchBuckets
        return {axis: buckets(*ends) for axis, ends in ranges.items()}

    def _rtx_settings(self, options: SessionOptions) -> Any:
        """Settings of TensorRT-RTX, which compiles kernels for its shapes and records graphs."""
        trt = self._trt
        settings = self._engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if options.cuda_graphs:
            # There are few shapes then, so that each is worth waiting for once; its kernels are
            # in the cache at the next start.
            settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            settings.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
        return settings


class _KernelCache:
    """Kernels that TensorRT-RTX compiled, kept in a file."""

    def __init__(self, file: Path, settings: Any) -> None:
        """Add the kernels in a file to settings, unless another machine or release wrote it."""
        self._file = file
        self._cache = settings.create_runtime_cache()
        self._written: bytes | None = None
        with contextlib.suppress(OSError):  # without it they are compiled once more
            with open_regular(file) as stream:
                content = stream.read()
            if self._cache.deserialize(content):
                self._written = content
        settings.set_runtime_cache(self._cache)

    def write(self) -> None:
        """Replace the file, if there is anything new."""
        serialized = self._cache.serialize()
        if serialized is None:
            self._warn("the library does not hand them out")
            return
        content = bytes(serialized)
        if content == self._written:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, content)
        except OSError as error:
            self._warn(error)
        self._written = content

    def _warn(self, why: object) -> None:
        warn_caller(
            f"Compiled kernels cannot be kept in {self._file}: {why}. They will be compiled again "
            "at the next start.",
            CacheWarning,
        )
