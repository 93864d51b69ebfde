"""Sessions of ONNX Runtime, and its execution providers."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.engines.machine import this_machine
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
from sacvit_deploy.engines.tensorrt_library import version_numbers
from sacvit_deploy.errors import EngineError, MissingDependencyError, warn_caller
from sacvit_deploy.records import GraphEntry
from sacvit_deploy.spec import GraphSpec, TensorSpec

SUFFIX = "ExecutionProvider"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
TENSORRT_RTX = "NvTensorRTRTXExecutionProvider"

# Fast without building an engine first; TensorRT inside ONNX Runtime would take minutes at start.
# TensorRT-RTX takes seconds, and is there only if its plug-in was installed.
_PREFERRED = (TENSORRT_RTX, CUDA, CPU)
_RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
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
    """A tensor in the library's memory, which is freed with the last handle."""

    value: Any
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


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
        options = options or SessionOptions()
        ort = self._ort = onnxruntime()
        asked = asked_providers(ort, options.providers)
        settings = ort.SessionOptions()
        settings.log_severity_level = _ONLY_ERRORS
        settings.intra_op_num_threads = options.run_threads or 0
        # Each graph has its own threads. Those of the first stage would go on waiting busily for
        # work while the second computes, and take its cores: 95 ms instead of 61 for both stages
        # of DeiT-S on two cores.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            # It prints why a provider cannot be had; stdout belongs to a command's JSON.
            with contextlib.redirect_stdout(sys.stderr):
                providers = add_providers(ort, settings, asked, cache)
                contents = add_weights(settings, weights)
                self._session = ort.InferenceSession(str(path), settings, providers=providers)
                del contents  # the library has copied them only now
        except Exception as error:  # its exceptions share no other base
            raise EngineError(
                f"ONNX Runtime {ort.__version__} cannot load {path}: {str(error)[:_SHOWN]}",
                "Check the bundle with sacvit-deploy inspect, or export it again.",
            ) from error
        # After a call that failed it would go on on the CPU, and say so on stdout only.
        self._session.disable_fallback()
        self._path = path
        self._gather_rows = RowGatherer(ort)
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

    @property
    def memory(self) -> str | None:
        """Library and device; see `DeviceSession.memory`."""
        return "onnxruntime cuda:0" if self.provider in _ON_GPU else None

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute every output; see `Session.run`."""
        session = self._opened()
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
        device = "cpu" if self.memory is None else "cuda"
        try:
            binding = session.io_binding()
            values = {name: self._uploaded(feed, device) for name, feed in feeds.items()}
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for name in self._outputs:
                binding.bind_output(name, device if name in keep else "cpu", 0)
            session.run_with_iobinding(binding)
            values |= zip(self._outputs, binding.get_outputs(), strict=True)
            fetched = {name: values[name].numpy() for name in self._outputs if name not in keep}
            kept: dict[str, Tensor] = {
                name: OrtTensor(value, np.dtype(_DTYPES[value.data_type()]), tuple(value.shape()))
                for name, value in values.items()
                if name in keep
            }
        except Exception as error:  # its exceptions share no other base
            raise self._failure(error) from error
        check_outputs({**kept, **fetched}, self._contract, sizes)
        return fetched, kept

    def close(self) -> None:
        """Release the graph; see `Session.close`. Handles keep their own memory."""
        self._session = None

    def _opened(self) -> Any:
        """The library's session, which lives until the call that asked for it has ended."""
        session = self._session
        if session is None:
            raise closed_error(f"The session of {self._path}")
        return session

    def _uploaded(self, feed: Tensor, device: str) -> Any:
        """An `OrtValue` on the device; only a host array has to be copied there."""
        if isinstance(feed, OrtTensor):
            return feed.value
        if isinstance(feed, Rows):
            handle: Any = feed.tensor
            return self._gather_rows(handle.value, handle.dtype, feed.numbers, device)
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(feed), device, 0)

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


def onnxruntime() -> ModuleType:
    """Import the library; `MissingDependencyError` if it is not installed."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingDependencyError(
            f"Running a bundle needs onnxruntime, which cannot be imported: {error}.",
            "Install it with: pip install onnxruntime (or the build made for your device).",
        ) from error


def available_providers(ort: ModuleType) -> list[str]:
    """Full names of the providers offered here, the TensorRT-RTX plug-in included."""
    built_in = list(ort.get_available_providers())
    return [TENSORRT_RTX, *built_in] if _rtx_device(ort)[0] else built_in


def unavailable_providers(ort: ModuleType) -> dict[str, str]:
    """Why each preferred provider is not offered here, by full name."""
    available = available_providers(ort)
    reasons = {
        TENSORRT_RTX: _rtx_device(ort)[1],
        CUDA: f"This onnxruntime {ort.__version__} was built without it; onnxruntime-gpu has it.",
    }
    return {name: why for name, why in reasons.items() if name not in available}


def asked_providers(ort: ModuleType, names: tuple[str, ...] | None) -> list[str]:
    """Full names of providers in order of preference, offered here or not.

    Args:
        ort: The library.
        names: Full or short names; None for the preferred ones that are offered here.

    Raises:
        EngineError: ONNX Runtime does not know a name.
    """
    available = available_providers(ort)
    if not names:
        return [name for name in _PREFERRED if name in available]
    known = {name.removesuffix(SUFFIX).lower(): name for name in ort.get_all_providers()}
    asked = []
    for name in names:
        short = name.lower().removesuffix(SUFFIX.lower())
        if short not in known:
            raise EngineError(
                f"ONNX Runtime knows no execution provider {name!r}.",
                f"Here it offers: {', '.join(available)}.",
            )
        asked.append(known[short])
    if TENSORRT in asked and CUDA not in asked:
        # Operators that TensorRT refuses stay on the GPU.
        asked.insert(asked.index(TENSORRT) + 1, CUDA)
    return asked


def add_providers(
    ort: ModuleType, settings: Any, asked: list[str], cache: Path | None
) -> list[Any] | None:
    """The `providers` of a new session; None if its settings name a plug-in instead.

    Args:
        ort: The library.
        settings: Its `SessionOptions`, changed when the plug-in comes first.
        asked: Full names in order of preference.
        cache: Where a provider may keep its compiled kernels.
    """
    available = [name for name in asked if name in available_providers(ort)]
    plugged_in = available and available[0] not in ort.get_available_providers()
    if plugged_in:
        folder = {"nv_runtime_cache_path": str(cache / "rtx")} if cache else {}
        settings.add_provider_for_devices([_rtx_device(ort)[0]], folder)
        return None
    if CUDA in available and hasattr(ort, "preload_dlls"):  # since 1.21
        ort.preload_dlls()  # pip puts CUDA and cuDNN where nothing else looks for them
    return [(name, _provider_options(name, cache)) for name in available] or [CPU]


def _provider_options(provider: str, cache: Path | None) -> dict[str, Any]:
    if provider == CUDA:
        # Its default rounds the factors of float32 products to 10 bits, and tokens are ranked by
        # smaller differences. In an FP16 graph, this concerns only the parts kept in FP32.
        return {"use_tf32": "0"}
    if provider != TENSORRT or cache is None:
        return {}
    folder = str(cache / "tensorrt")
    os.makedirs(folder, exist_ok=True)  # it makes only the last folder by itself
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": folder,
    }


def rtx_plugin_runs_on(compute_capability: str) -> bool:
    """Whether NVIDIA supports the TensorRT-RTX plug-in on a GPU, such as `8.6`.

    Of the Ampere GPUs these are the RTX cards (8.6), then Ada (8.9) and Blackwell (12.0 and later).
    The plug-in itself offers every GPU from 8.0 on, H100 among them.
    """
    numbers = version_numbers(compute_capability)
    return compute_capability in ("8.6", "8.9") or numbers >= (12, 0)


def _rtx_device(ort: ModuleType) -> tuple[Any | None, str]:
    """The current GPU for the TensorRT-RTX plug-in, which takes exactly one; or None and why."""
    devices, reason = _rtx_devices(ort)
    if not devices:
        return None, reason
    machine = this_machine()
    gpu = machine.current_gpu
    if gpu is not None and not rtx_plugin_runs_on(gpu.compute_capability):
        return None, (
            "Its plug-in needs compute capability 8.6, 8.9, or 12.0 and later; "
            f"{gpu.name} has {gpu.compute_capability}."
        )
    ordinals = (device.ep_options.get("device_id") for device in devices)
    by_ordinal = dict(zip(ordinals, devices, strict=True))
    return by_ordinal.get(str(machine.current), devices[0]), ""


@functools.cache
def _rtx_devices(ort: ModuleType) -> tuple[tuple[Any, ...], str]:
    """GPUs for the TensorRT-RTX plug-in, or none and why; it can be registered only once."""
    try:
        plugin = cast("Any", importlib.import_module(_RTX_PLUGIN))
    except ImportError:
        return (), "Its plug-in is not installed: pip install onnxruntime-ep-nv-tensorrt-rtx."
    if not hasattr(ort, "register_execution_provider_library"):
        return (), f"This onnxruntime {ort.__version__} takes no plug-ins; 1.24 or later does."
    try:
        ort.register_execution_provider_library(TENSORRT_RTX, plugin.get_library_path())
    except Exception as error:
        return (), f"Its plug-in cannot be loaded: {error}"
    devices = tuple(found for found in ort.get_ep_devices() if found.ep_name == TENSORRT_RTX)
    return devices, "" if devices else "Its plug-in finds no GPU it can use."
