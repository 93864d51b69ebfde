"""Batch sizes that are recorded once each, and the sizes that are padded to them."""

from __future__ import annotations

import contextlib
import warnings
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sacvit_deploy.bundle import build_command
from sacvit_deploy.engines.machine import cache_folder
from sacvit_deploy.engines.tensorrt_library import BuildLog, logger
from sacvit_deploy.errors import EngineError
from sacvit_deploy.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sacvit_deploy.bundle import Bundle
    from sacvit_deploy.engines.session import SessionOptions
    from sacvit_deploy.engines.tensorrt_library import Flavour
    from sacvit_deploy.manifest import EngineEntry


@dataclass(frozen=True)
class BatchBuckets:
    """The sizes of one dynamic axis.

    Attributes:
        smallest: That the engine takes; less is padded.
        largest: That the engine takes; more is refused.
        recorded: Sizes in use, ascending; empty where any size from smallest to largest is.
    """

    smallest: int
    largest: int
    recorded: tuple[int, ...] = ()

    @classmethod
    def of_range(
        cls, smallest: int, largest: int, chosen: Sequence[int] | None = None
    ) -> BatchBuckets:
        """Buckets within the range of an engine, its ends included.

        Args:
            smallest: That the engine takes.
            largest: That the engine takes.
            chosen: Sizes to record; None takes two for each doubling, so that less than a third of
                a batch is padding.
        """
        if chosen is None:
            powers = [1 << bit for bit in range(largest.bit_length())]
            chosen = sorted({*powers, *(3 * power for power in powers)})
        inside = {size for size in chosen if smallest <= size <= largest}
        return cls(smallest, largest, tuple(sorted(inside | {smallest, largest})))

    def padded(self, size: int) -> int:
        """The size to run `size` rows with.

        Raises:
            EngineError: The engine takes no batch as large.
        """
        if size > self.largest:
            raise EngineError(
                f"A batch of {size} was given; the engine takes {self.smallest} to {self.largest}.",
                f"Use smaller batches, or build it for larger ones: sacvit-deploy build-engine "
                f"BUNDLE --batch {self.smallest}:{self.largest}:{size}",
            )
        if not self.recorded:
            return max(size, self.smallest)
        return self.recorded[bisect_left(self.recorded, size)]


_PROFILE = 0  # the builder makes one
_DTYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "int64": "INT64",
    "uint8": "UINT8",
}


class CacheWarning(UserWarning):
    """Compiled kernels could not be kept for the next start."""


@dataclass(frozen=True)
class CheckedPlan:
    """A plan that belongs to its bundle and to this machine.

    Attributes:
        entry: What the bundle says about it.
        flavour: The library that built it.
        plan: Its content.
    """

    entry: EngineEntry
    flavour: Flavour
    plan: bytes


class TensorRTEngine:
    """One engine of a bundle on this machine.

    Attributes:
        entry: What the bundle says about it.
        graph: What it was built from: names, dtypes and shapes of inputs and outputs.
        buckets: Sizes of each dynamic axis, by the name of the axis.
        scratch_bytes: Device memory that any context needs while it runs.
        trt: `tensorrt` or `tensorrt_rtx`.
        rebuild: What to do if it turns out to be unusable.
    """

    def __init__(self, bundle: Bundle, checked: CheckedPlan, options: SessionOptions) -> None:
        """Deserialise a plan.

        Args:
            bundle: Where it is from.
            checked: The plan.
            options: CUDA graphs and batch sizes.

        Raises:
            EngineError: The library refuses it, or it does not belong to the bundle's graph.
        """
        entry, flavour = checked.entry, checked.flavour
        self.trt = flavour.module
        self.entry = entry
        self.graph = bundle.graph(entry.role, entry.precision)
        self._flavour = flavour
        self.rebuild = f"Build it again: {build_command(bundle, entry)}"
        self._log = BuildLog()
        self._runtime = self.trt.Runtime(logger(self.trt, self._log))
        # A version-compatible plan brings code of its own. It is run because the hash says that it
        # is the file which was built.
        if entry.flags.get("version_compatible"):
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(checked.plan)
        if self._engine is None:
            raise self.failure(f"cannot load the {len(checked.plan)} bytes of", self.rebuild)
        self._check_tensors()
        self.buckets = self._buckets(options)
        self.scratch_bytes = int(self._engine.device_memory_size_v2)
        self._settings, self._cache = None, None
        if flavour.is_rtx:
            file = cache_folder(bundle) / f"{entry.role}.{entry.precision}.rtx-cache"
            self._cache = _RuntimeCache(file)
            self._settings = self._rtx_settings(self._cache, options)

    @property
    def label(self) -> str:
        """The library and its version."""
        return f"{self._flavour.label} {self._flavour.version}"

    @property
    def records_itself(self) -> bool:
        """Whether the library records CUDA graphs on its own."""
        return self._settings is not None

    def create_context(self) -> Any:
        """An `IExecutionContext` that has to be given scratch memory before it runs.

        Raises:
            EngineError: It could not be made.
        """
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(
            strategy if self._settings is None else self._settings
        )
        if context is None:
            fix = "Close other programs that use the GPU, or build for a smaller largest batch."
            raise self.failure("cannot make a context for", fix)
        return context

    def failure(self, what: str, fix: str) -> EngineError:
        """An error with what the library itself said last."""
        said = "; ".join(self._log.errors[-3:]) or "it does not say why"
        self._log.lines.clear()
        return EngineError(f"{self.label} {what} {self.entry.file}: {said}.", fix)

    def close(self) -> None:
        """Let go of the engine, once no context of it is left."""
        self._engine = self._settings = self._cache = self._runtime = None

    def keep_compiled(self) -> None:
        """Write what TensorRT-RTX has compiled by now, for the next start; else do nothing."""
        if self._cache is not None:
            self._cache.write()

    def _check_tensors(self) -> None:
        """Names, dtypes and directions are those of the graph."""
        engine = self._engine
        found = {
            (name, engine.get_tensor_mode(name).name, engine.get_tensor_dtype(name).name)
            for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
        }
        wanted = {(spec.name, "INPUT", _DTYPES[spec.dtype]) for spec in self.graph.inputs}
        wanted |= {(spec.name, "OUTPUT", _DTYPES[spec.dtype]) for spec in self.graph.outputs}
        if found != wanted:
            differing = ", ".join(sorted({name for name, _, _ in found ^ wanted}))
            raise EngineError(
                f"The engine {self.entry.file} was not built from the bundle's {self.graph.file}: "
                f"they differ in {differing}.",
                self.rebuild,
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
        if not options.cuda_graphs:
            return {axis: BatchBuckets(*ends) for axis, ends in ranges.items()}
        return {
            axis: BatchBuckets.of_range(*ends, options.batch_buckets)
            for axis, ends in ranges.items()
        }

    def _rtx_settings(self, cache: _RuntimeCache, options: SessionOptions) -> Any:
        """How TensorRT-RTX runs: it compiles kernels for the shapes at hand, and records graphs."""
        trt = self.trt
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
        settings.set_runtime_cache(cache.open(settings))
        return settings


class _RuntimeCache:
    """Kernels that TensorRT-RTX compiled, kept in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._cache: Any = None
        self._written: bytes | None = None

    def open(self, settings: Any) -> Any:
        """An `IRuntimeCache`, filled from the file unless another machine or release wrote it."""
        self._cache = settings.create_runtime_cache()
        with contextlib.suppress(OSError):  # without it they are compiled once more
            content = self._file.read_bytes()
            if self._cache.deserialize(content):
                self._written = content
        return self._cache

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
        warnings.warn(
            f"Compiled kernels cannot be kept in {self._file}: {why}. They will be compiled again "
            "at the next start.",
            CacheWarning,
            stacklevel=3,
        )
