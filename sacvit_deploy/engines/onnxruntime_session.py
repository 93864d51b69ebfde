"""Sessions of ONNX Runtime, and its execution providers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.engines.onnxruntime_providers import (
    CPU,
    CUDA,
    TENSORRT,
    TENSORRT_RTX,
    ProviderTuning,
    add_providers,
    asked_providers,
    available_providers,
    offered_of,
    onnxruntime,
    plugin_ordinal,
)
from sacvit_deploy.engines.onnxruntime_recorded import (
    MOST_SETS,
    TURN,
    BufferSets,
    DeviceName,
    Lease,
)
from sacvit_deploy.engines.onnxruntime_rows import RowGatherer
from sacvit_deploy.engines.session import (
    Rows,
    SessionOptions,
    Tensor,
    check_feeds,
    check_outputs,
    check_tensors,
    closed_error,
)
from sacvit_deploy.engines.tensorrt_engine import CudaGraphWarning
from sacvit_deploy.errors import EngineError, warn_caller
from sacvit_deploy.records import GraphEntry
from sacvit_deploy.spec import GraphSpec, TensorSpec

# They record runs, in memory of these kinds.
_RECORDS = {CUDA: "cuda", TENSORRT_RTX: "gpu"}
# Their memory is reached as "cuda". The TensorRT-RTX plug-in allocates for itself.
_ON_GPU = (CUDA, TENSORRT)

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
}
_ONLY_ERRORS = 3
# Characters of the library's messages and of names in a graph, which may be of any length.
_SHOWN = 800


class ProviderWarning(UserWarning):
    """The execution provider that computes is not the one that was asked for."""


@dataclass(frozen=True)
class OrtTensor:
    """A tensor in the library's memory, which is freed with the last handle.

    The `lease` of memory that is recorded keeps it from being computed anew.
    """

    value: Any
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    lease: Lease | None = None


class OnnxRuntimeSession:
    """One ONNX graph in ONNX Runtime.

    Attributes:
        inputs: Its inputs: those of the contract, or else those that the graph declares.
        provider: The first execution provider that was obtained.
    """

    def __init__(
        self,
        path: Path,
        options: SessionOptions | None = None,
        *,
        graph: GraphSpec | GraphEntry | None = None,
        cache: Path | None = None,
        weights: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """Load a graph.

        Args:
            path: The `.onnx` file; its external weights lie beside it.
            options: Providers and threads.
            graph: The contract that its inputs and outputs have to keep, at load and in every
                call; None accepts any.
            cache: Where a provider may keep its compiled kernels; for this graph alone.
            weights: External weights that are links to another folder, by the name in the graph.

        Raises:
            EngineError: The library cannot run the file, its tensors are not those of the
                contract, or a provider is unknown.
            MissingDependencyError: ONNX Runtime is not installed.
        """
        self._options = options or SessionOptions()
        ort = self._ort = onnxruntime()
        asked = self._asked = asked_providers(ort, self._options.providers)
        self._path, self._weights = path, weights
        self._tuning = ProviderTuning(cache, graph)
        self._gather_rows = RowGatherer(ort)
        self._recorded: BufferSets | None = None
        self._session: Any = self._start()
        self.inputs = tuple(map(_tensor_spec, self._session.get_inputs()))
        self._outputs = [node.name for node in self._session.get_outputs()]
        self._contract: tuple[TensorSpec, ...] = ()
        if graph is not None:
            outputs = tuple(map(_tensor_spec, self._session.get_outputs()))
            check_tensors(path, graph, self.inputs, outputs)
            self.inputs, self._contract = graph.inputs, graph.outputs
        self.provider = str(self._session.get_providers()[0])
        if self.provider != asked[0]:
            warn_caller(
                f"{asked[0]} was asked for and {self.provider} was obtained: this onnxruntime "
                f"{ort.__version__} offers {', '.join(available_providers(ort))}. Install the "
                f"build that has {asked[0]} and the libraries it needs, or ask for another "
                "provider.",
                ProviderWarning,
            )

    def _start(self) -> Any:
        """A session of the library, which records runs if its provider and the graph can."""
        first = next(iter(offered_of(self._ort, self._asked)), CPU)
        kind, graph = _RECORDS.get(first), self._tuning.graph
        if kind is not None and graph is not None and self._options.cuda_graphs:
            try:
                session = self._new_session(record=True)
            except EngineError as error:
                self._warn_of_no_recording(error)
            else:
                ordinal = plugin_ordinal(self._ort) if first == TENSORRT_RTX else 0
                specs = graph.inputs, graph.outputs
                self._recorded = BufferSets(self._ort, session, specs, DeviceName(kind, ordinal))
                return session
        return self._new_session(record=False)

    def _new_session(self, *, record: bool) -> Any:
        """A session of the library; `EngineError` if it cannot load the graph."""
        ort, options = self._ort, self._options
        settings = ort.SessionOptions()
        settings.log_severity_level = _ONLY_ERRORS
        settings.intra_op_num_threads = options.run_threads or 0
        # Each graph has its own threads. Those of the first stage would go on waiting busily for
        # work while the second computes, and take its cores: 95 ms instead of 61 for both stages
        # of DeiT-S on two cores.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        # Without a fallback: it would be one without the options of the provider.
        strict = {"enable_fallback": 0} if record else {}
        try:
            # It prints why a provider cannot be had; stdout belongs to a command's JSON.
            with contextlib.redirect_stdout(sys.stderr):
                tuning = replace(self._tuning, record=record)
                providers = add_providers(ort, settings, self._asked, tuning)
                contents = add_weights(settings, self._weights)
                session = ort.InferenceSession(
                    str(self._path), settings, providers=providers, **strict
                )
                del contents  # the library has copied them only now
        except Exception as error:  # its exceptions share no other base
            raise EngineError(
                f"ONNX Runtime {ort.__version__} cannot load {self._path}: {str(error)[:_SHOWN]}",
                "Check the bundle with sacvit-deploy inspect, or export it again.",
            ) from error
        # After a call that failed it would go on on the CPU, and say so on stdout only.
        session.disable_fallback()
        return session

    def _warn_of_no_recording(self, error: Exception) -> None:
        warn_caller(
            f"ONNX Runtime cannot record {self._path.name} as a CUDA graph, so each kernel is "
            f"launched by itself, which is slower: {str(error)[:_SHOWN]}",
            CudaGraphWarning,
        )

    @property
    def records(self) -> bool:
        """Whether runs are recorded as CUDA graphs and replayed."""
        return self._recorded is not None

    @property
    def memory(self) -> str | None:
        """Library and device; see `DeviceSession.memory`."""
        return "onnxruntime cuda:0" if self.provider in _ON_GPU else None

    def prepared_sizes(self, largest: int) -> list[int]:
        """Every size that is recorded; see `PreparingSession.prepared_sizes`."""
        return list(range(1, min(largest, MOST_SETS) + 1)) if self.records else [largest]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute every output; see `Session.run`."""
        session = self._opened()
        if self._recorded is not None:
            return self.run_on_device(feeds, ())[0]
        sizes = check_feeds(feeds, self.inputs)
        try:
            arrays = session.run(self._outputs, dict(feeds))
        except Exception as error:  # its exceptions share no other base
            raise self._failure(error) from error
        outputs = dict(zip(self._outputs, arrays, strict=True))
        check_outputs(outputs, self._contract, sizes)
        return outputs

    def run_on_device(
        self, feeds: Mapping[str, Tensor], keep: Collection[str]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Tensor]]:
        """Compute every output; see `DeviceSession.run_on_device`."""
        session = self._opened()
        sizes = check_feeds(feeds, self.inputs)
        turn = contextlib.nullcontext() if self._recorded is None else TURN
        try:
            with turn:
                values, lease = self._computed(session, feeds, keep, sizes)
                fetched = {name: values[name].numpy() for name in self._outputs if name not in keep}
                if lease is not None:  # on the CPU they are the memory that is computed anew
                    fetched = {
                        name: np.require(each, requirements="O") for name, each in fetched.items()
                    }
            kept: dict[str, Tensor] = {
                name: OrtTensor(
                    value, np.dtype(_DTYPES[value.data_type()]), tuple(value.shape()), lease
                )
                for name, value in values.items()
                if name in keep
            }
        except Exception as error:  # its exceptions share no other base
            raise self._failure(error) from error
        check_outputs({**kept, **fetched}, self._contract, sizes)
        return fetched, kept

    def _computed(
        self,
        session: Any,
        feeds: Mapping[str, Tensor],
        keep: Collection[str],
        sizes: Mapping[str, int],
    ) -> tuple[dict[str, Any], Lease | None]:
        """Every input and output as an `OrtValue`, from a recording if there can be one.

        A recording that fails is the last: a library in the middle of one is of no more use.
        """
        given = {
            name: feed if isinstance(feed, np.ndarray) else self._on_device(feed)
            for name, feed in feeds.items()
        }
        recorded = self._recorded
        leased = recorded.lease(sizes) if recorded is not None else None
        if recorded is None or leased is None:
            unrecorded = None if recorded is None else recorded.unrecorded()
            return self._bound(session, given, keep, unrecorded), None
        buffers, lease = leased
        try:
            recorded.run(buffers, given)
        except Exception as error:
            if buffers.is_checked:
                raise
            self._warn_of_no_recording(error)
            self._recorded, self._session = None, self._new_session(record=False)
            return self._bound(self._session, given, keep, None), None
        return dict(buffers.values), lease

    def _bound(
        self, session: Any, given: Mapping[str, Any], keep: Collection[str], options: Any
    ) -> dict[str, Any]:
        """Every input and output as an `OrtValue`, from a run in memory of its own."""
        binding = session.io_binding()
        uploaded = self._ort.OrtValue.ortvalue_from_numpy
        values = {
            name: uploaded(np.ascontiguousarray(each), self._device, 0)
            if isinstance(each, np.ndarray)
            else each
            for name, each in given.items()
        }
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, self._device if name in keep else "cpu", 0)
        session.run_with_iobinding(binding, options)
        return {**values, **dict(zip(self._outputs, binding.get_outputs(), strict=True))}

    @property
    def _device(self) -> str:
        """Where tensors stay, as `OrtValue` names it."""
        return "cuda" if self.provider in (CUDA, TENSORRT) else "cpu"

    def _on_device(self, feed: Tensor) -> Any:
        """The `OrtValue` of a handle, or a new one of some of its rows."""
        if isinstance(feed, Rows):
            handle: Any = feed.tensor
            return self._gather_rows(handle.value, handle.dtype, feed.numbers, self._device)
        return cast("OrtTensor", feed).value

    def close(self) -> None:
        """Release the graph; see `Session.close`. Handles keep their own memory."""
        self._session = self._recorded = None

    def _opened(self) -> Any:
        """The library's session, which lives until the call that asked for it has ended."""
        session = self._session
        if session is None:
            raise closed_error(f"The session of {self._path}")
        return session

    def _failure(self, error: Exception) -> EngineError:
        return EngineError(
            f"ONNX Runtime failed on {self.provider}: {str(error)[:_SHOWN]}",
            "If memory ran out, use a smaller batch; else check the bundle with "
            "sacvit-deploy verify.",
        )


def add_weights(settings: Any, weights: Mapping[str, Path]) -> list[bytes]:
    """Give weights as bytes, and return these: a session refuses links out of its folder.

    Older releases that cannot take bytes follow the links.
    """
    if not weights or not hasattr(settings, "add_external_initializers_from_files_in_memory"):
        return []
    contents = [file.read_bytes() for file in weights.values()]
    sizes = list(map(len, contents))
    settings.add_external_initializers_from_files_in_memory(list(weights), contents, sizes)
    return contents


def _tensor_spec(node: Any) -> TensorSpec:
    """A tensor as the library describes it; an unnamed dynamic axis gets a name of its own."""
    if node.type not in _DTYPES:
        raise EngineError(
            f"The graph has {node.name[:_SHOWN]!r}, which is a {node.type[:_SHOWN]}.",
            "Use a graph from a bundle.",
        )
    dtype = cast("Literal['float32', 'float16', 'uint8', 'int64']", _DTYPES[node.type])
    shape = tuple(
        side if isinstance(side, (int, str)) else f"{node.name}.{axis}"
        for axis, side in enumerate(node.shape)
    )
    return TensorSpec(node.name, dtype, shape)
