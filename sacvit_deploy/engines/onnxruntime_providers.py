"""Which execution providers of ONNX Runtime there are, and how each is asked for."""

from __future__ import annotations

import functools
import importlib
import os
from typing import TYPE_CHECKING, Any, cast

from sacvit_deploy.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

SUFFIX = "ExecutionProvider"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
TENSORRT_RTX = "NvTensorRTRTXExecutionProvider"

_RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"

# Fast without building an engine first; TensorRT inside ONNX Runtime would take minutes at start,
# TensorRT-RTX takes seconds and is there only when somebody installed it on purpose.
PREFERRED = (TENSORRT_RTX, CUDA, CPU)


def onnxruntime() -> ModuleType:
    """The library.

    Raises:
        MissingDependencyError: It cannot be imported.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingDependencyError(
            f"Running a bundle needs onnxruntime, which cannot be imported: {error}.",
            "Install it with: pip install onnxruntime (or the build made for your device).",
        ) from error


def available_providers(ort: ModuleType) -> list[str]:
    """Full names of those this installation offers, the TensorRT-RTX plug-in included."""
    built_in = list(ort.get_available_providers())
    return [TENSORRT_RTX, *built_in] if _rtx_devices(ort)[0] else built_in


def unavailable_providers(ort: ModuleType) -> dict[str, str]:
    """Why each preferred provider is not offered here, by full name."""
    available = available_providers(ort)
    reasons = {
        TENSORRT_RTX: _rtx_devices(ort)[1],
        CUDA: f"This onnxruntime {ort.__version__} was built without it; onnxruntime-gpu has it.",
    }
    return {name: why for name, why in reasons.items() if name not in available}


def asked_providers(ort: ModuleType, names: tuple[str, ...] | None) -> list[str]:
    """Full names in order of preference, of all that ONNX Runtime knows, offered here or not.

    Raises:
        EngineError: A name is not known.
    """
    available = available_providers(ort)
    if not names:
        return [name for name in PREFERRED if name in available]
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
        # What TensorRT does not take stays on the GPU.
        asked.insert(asked.index(TENSORRT) + 1, CUDA)
    return asked


def add_providers(
    ort: ModuleType, settings: Any, asked: list[str], cache: Path | None
) -> list[Any] | None:
    """What to pass as `providers` when a session is made; a plug-in is entered in its settings.

    Args:
        ort: The library.
        settings: Its `SessionOptions`, changed when the plug-in comes first.
        asked: Full names in order of preference.
        cache: Where a provider that compiles may keep what it compiled.
    """
    available = [name for name in asked if name in available_providers(ort)]
    plugged_in = available and available[0] not in ort.get_available_providers()
    if plugged_in:
        folder = {"nv_runtime_cache_path": str(cache / "rtx")} if cache else {}
        settings.add_provider_for_devices(list(_rtx_devices(ort)[0]), folder)
        return None
    if CUDA in available and hasattr(ort, "preload_dlls"):  # since 1.21
        ort.preload_dlls()  # pip puts CUDA and cuDNN where nothing else looks for them
    return [(name, _options(name, cache)) for name in available] or [CPU]


def _options(provider: str, cache: Path | None) -> dict[str, Any]:
    if provider == CUDA:
        # Its default rounds the factors of float32 products to 10 bits, and tokens are ranked by
        # smaller differences. Of an FP16 graph, this concerns what was kept in FP32, and no more.
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


@functools.cache
def _rtx_devices(ort: ModuleType) -> tuple[tuple[Any, ...], str]:
    """GPUs the TensorRT-RTX plug-in can use, or none and why; it can be registered only once."""
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
