"""The execution providers of ONNX Runtime: which are there, in which order, with which options."""

from __future__ import annotations

import functools
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from sacvit_deploy.engines.machine import this_machine
from sacvit_deploy.engines.tensorrt_library import version_numbers
from sacvit_deploy.errors import EngineError, MissingDependencyError
from sacvit_deploy.records import GraphEntry
from sacvit_deploy.spec import GraphSpec

SUFFIX = "ExecutionProvider"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
TENSORRT_RTX = "NvTensorRTRTXExecutionProvider"

# Fast without building an engine first; TensorRT inside ONNX Runtime would take minutes at start.
# TensorRT-RTX takes seconds, and is there only if its plug-in was installed.
_PREFERRED = (TENSORRT_RTX, CUDA, CPU)
_RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
# They build an engine for a range of batches; the largest is refused beyond. Without a range, each
# larger batch would build the engine again, and the plug-in would make one for any size.
PROFILED = (TENSORRT, TENSORRT_RTX)
PROFILE_BATCHES = 1, 8, 128


@dataclass(frozen=True)
class ProviderTuning:
    """What the options of a provider follow from.

    Attributes:
        cache: Where it may keep its compiled kernels.
        graph: The contract of the graph; None if not known.
        record: Whether it records runs as CUDA graphs.
    """

    cache: Path | None = None
    graph: GraphSpec | GraphEntry | None = None
    record: bool = False


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


def offered_of(ort: ModuleType, asked: list[str]) -> list[str]:
    """Those of the full names that are offered here, in the same order."""
    available = available_providers(ort)
    return [name for name in asked if name in available]


def add_providers(
    ort: ModuleType, settings: Any, asked: list[str], tuning: ProviderTuning
) -> list[Any] | None:
    """The `providers` of a new session; None if its settings name a plug-in instead.

    Args:
        ort: The library.
        settings: Its `SessionOptions`, changed when the plug-in comes first.
        asked: Full names in order of preference.
        tuning: What their options follow from.
    """
    offered = offered_of(ort, asked)
    if offered and offered[0] not in ort.get_available_providers():
        settings.add_provider_for_devices([_rtx_device(ort)[0]], _rtx_options(tuning))
        return None
    if CUDA in offered and hasattr(ort, "preload_dlls"):  # since 1.21
        ort.preload_dlls()  # pip puts CUDA and cuDNN where nothing else looks for them
    return [(name, _provider_options(name, tuning)) for name in offered] or [CPU]


def _provider_options(provider: str, tuning: ProviderTuning) -> dict[str, Any]:
    if provider == CUDA:
        # Its default rounds the factors of float32 products to 10 bits, and tokens are ranked by
        # smaller differences. In an FP16 graph, this concerns only the parts kept in FP32.
        return {"use_tf32": "0"} | ({"enable_cuda_graph": "1"} if tuning.record else {})
    if provider != TENSORRT:
        return {}
    shapes = profile_shapes("trt", tuning.graph)
    if tuning.cache is None:
        return shapes
    folder = str(tuning.cache / "tensorrt")
    os.makedirs(folder, exist_ok=True)  # it makes only the last folder by itself
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": folder,
        **shapes,
    }


def _rtx_options(tuning: ProviderTuning) -> dict[str, str]:
    folder = {"nv_runtime_cache_path": str(tuning.cache / "rtx")} if tuning.cache else {}
    graphs = {"enable_cuda_graph": "1"} if tuning.record else {}
    return folder | graphs | profile_shapes("nv", tuning.graph)


def profile_shapes(prefix: str, graph: GraphSpec | GraphEntry | None) -> dict[str, str]:
    """Options that name the smallest, best and largest shape of each input.

    Args:
        prefix: Start of the options' names: `trt` or `nv`.
        graph: The contract; nothing without one, or if no axis is dynamic.
    """
    if graph is None or all(isinstance(side, int) for each in graph.inputs for side in each.shape):
        return {}
    return {
        f"{prefix}_profile_{kind}_shapes": ",".join(
            f"{spec.name}:{'x'.join(str(n if isinstance(n, int) else size) for n in spec.shape)}"
            for spec in graph.inputs
        )
        for kind, size in zip(("min", "opt", "max"), PROFILE_BATCHES, strict=True)
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
    by_ordinal = {device.ep_options.get("device_id"): device for device in devices}
    return by_ordinal.get(str(machine.current), devices[0]), ""


def plugin_ordinal(ort: ModuleType) -> int:
    """Number of the plug-in's GPU."""
    device = _rtx_device(ort)[0]
    return int(device.ep_options.get("device_id", 0)) if device is not None else 0


@functools.cache
def _rtx_devices(ort: ModuleType) -> tuple[tuple[Any, ...], str]:
    """GPUs for the TensorRT-RTX plug-in, or none and why; it can be registered only once."""
    try:
        plugin = cast("Any", importlib.import_module(_RTX_PLUGIN))
    except ImportError:
        ending = "-cu12" if (this_machine().driver_cuda or "").startswith("12.") else ""
        package = f"onnxruntime-ep-nv-tensorrt-rtx{ending}"
        return (), f"Its plug-in is not installed: pip install {package}."
    if not hasattr(ort, "register_execution_provider_library"):
        return (), f"This onnxruntime {ort.__version__} takes no plug-ins; 1.24 or later does."
    try:
        ort.register_execution_provider_library(TENSORRT_RTX, plugin.get_library_path())
    except Exception as error:
        return (), f"Its plug-in cannot be loaded: {error}"
    devices = tuple(found for found in ort.get_ep_devices() if found.ep_name == TENSORRT_RTX)
    return devices, "" if devices else "Its plug-in finds no GPU it can use."
