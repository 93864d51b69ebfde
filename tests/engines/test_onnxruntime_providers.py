from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from sacvit_deploy.engines import onnxruntime_providers
from sacvit_deploy.engines.machine import Gpu, Machine
from sacvit_deploy.engines.onnxruntime_providers import (
    CPU,
    CUDA,
    TENSORRT,
    TENSORRT_RTX,
    ProviderTuning,
    add_providers,
    asked_providers,
    available_providers,
    profile_shapes,
    unavailable_providers,
)
from sacvit_deploy.spec import GraphSpec, TensorSpec

PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"


class Device:
    def __init__(self, ep_name, ordinal=0) -> None:
        self.ep_name = ep_name
        self.ep_options = {"device_id": str(ordinal)}


class Settings:
    def __init__(self) -> None:
        self.added: Any = None
        self.device: Any = None

    def add_provider_for_devices(self, devices, options) -> None:
        (device,) = devices  # more are refused: "EP only supports selection for one device."
        self.device = device.ep_name, device.ep_options["device_id"]
        self.added = options


class Ort(types.ModuleType):
    """ONNX Runtime with some providers built in, and GPUs for a plug-in to find."""

    __version__ = "1.31.0"

    def __init__(self, *built_in, gpus=1, driver=True) -> None:
        super().__init__("onnxruntime")
        self.built_in = [*built_in, CPU]
        self.gpus = gpus
        self.driver = driver
        self.registered: list[str] = []
        self.preloaded = 0

    def get_available_providers(self):
        return list(self.built_in)

    def get_all_providers(self):
        return [TENSORRT_RTX, TENSORRT, CUDA, CPU]

    def preload_dlls(self) -> None:
        self.preloaded += 1

    def register_execution_provider_library(self, name, path) -> None:
        if not self.driver:
            raise RuntimeError("libcuda.so.1: cannot open shared object file")
        assert name not in self.registered
        self.registered.append(name)

    def get_ep_devices(self):
        return [Device(CPU)] + [Device(TENSORRT_RTX, ordinal) for ordinal in range(self.gpus)]


@pytest.fixture
def plugin(monkeypatch) -> None:
    module = types.ModuleType(PLUGIN)
    module.get_library_path = lambda: "libplugin.so"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, PLUGIN, module)


@pytest.fixture
def no_plugin(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, PLUGIN, None)


@pytest.mark.usefixtures("plugin")
def test_the_plugin_is_registered_once_and_comes_first(tmp_path) -> None:
    ort, settings = Ort(CUDA), Settings()
    assert available_providers(ort) == [TENSORRT_RTX, CUDA, CPU]
    asked = asked_providers(ort, None)
    assert asked == [TENSORRT_RTX, CUDA, CPU]
    assert add_providers(ort, settings, asked, ProviderTuning(tmp_path)) is None
    assert settings.device == (TENSORRT_RTX, "0")
    assert settings.added == {"nv_runtime_cache_path": str(tmp_path / "rtx")}
    assert ort.registered == [TENSORRT_RTX]
    assert ort.preloaded == 0, "the plug-in is another provider"


def gpus(*capabilities, current=0) -> Machine:
    return Machine(
        "linux-x86_64", "13.0", tuple(Gpu("GPU", text, 1 << 34) for text in capabilities), current
    )


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("current", [0, 1])
def test_the_plugin_gets_one_gpu_the_current_one(monkeypatch, current) -> None:
    machine = gpus("8.9", "12.0", current=current)
    monkeypatch.setattr(onnxruntime_providers, "this_machine", lambda: machine)
    ort, settings = Ort(gpus=2), Settings()
    add_providers(ort, settings, [TENSORRT_RTX], ProviderTuning())
    assert settings.device == (TENSORRT_RTX, str(current))


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.7", "8.9", "9.0", "11.0", "12.0", "12.1"])
def test_the_plugin_is_offered_on_supported_gpus_only(monkeypatch, capability) -> None:
    fits = capability in ("8.6", "8.9", "12.0", "12.1")
    monkeypatch.setattr(onnxruntime_providers, "this_machine", lambda: gpus(capability))
    ort = Ort()
    assert (TENSORRT_RTX in available_providers(ort)) is fits
    why = unavailable_providers(ort).get(TENSORRT_RTX, "")
    assert (f"8.6, 8.9, or 12.0 and later; GPU has {capability}" in why) is not fits


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("ort", "why"),
    [
        (Ort(gpus=0), "finds no GPU"),
        (Ort(driver=False), "cannot be loaded: libcuda"),
    ],
)
def test_a_plugin_without_a_gpu_is_left_out(ort, why) -> None:
    assert asked_providers(ort, None) == [CPU]
    assert why in unavailable_providers(ort)[TENSORRT_RTX]


@pytest.mark.usefixtures("plugin")
def test_an_onnxruntime_without_plugins_says_so(monkeypatch) -> None:
    monkeypatch.delattr(Ort, "register_execution_provider_library")
    assert "takes no plug-ins" in unavailable_providers(Ort())[TENSORRT_RTX]


@pytest.mark.usefixtures("no_plugin")
def test_what_is_missing_says_what_to_install() -> None:
    reasons = unavailable_providers(Ort())
    assert "pip install onnxruntime-ep-nv-tensorrt-rtx" in reasons[TENSORRT_RTX]
    assert "onnxruntime-gpu" in reasons[CUDA]
    assert CUDA not in unavailable_providers(Ort(CUDA))


@pytest.mark.usefixtures("no_plugin")
@pytest.mark.parametrize(("cuda", "ending"), [("12.8", "-cu12."), ("13.1", "rtx."), (None, "rtx.")])
def test_the_plugin_for_this_driver_is_named(monkeypatch, cuda, ending) -> None:
    machine = Machine("linux-x86_64", cuda, ())
    monkeypatch.setattr(onnxruntime_providers, "this_machine", lambda: machine)
    assert unavailable_providers(Ort())[TENSORRT_RTX].endswith(ending)


@pytest.mark.usefixtures("no_plugin")
def test_tensorrt_inside_onnxruntime_is_only_taken_when_asked_for(tmp_path) -> None:
    ort, settings = Ort(TENSORRT, CUDA), Settings()
    assert asked_providers(ort, None) == [CUDA, CPU]
    asked = asked_providers(ort, ("tensorrt", "CUDA"))
    providers = add_providers(ort, settings, asked, ProviderTuning(tmp_path / "cache"))
    assert providers is not None
    (name, options), cuda = providers
    assert (name, cuda) == (TENSORRT, (CUDA, {"use_tf32": "0"}))
    assert options["trt_engine_cache_path"] == str(tmp_path / "cache" / "tensorrt")
    assert (tmp_path / "cache" / "tensorrt").is_dir()
    assert settings.added is None


@pytest.mark.usefixtures("no_plugin")
def test_where_nothing_asked_for_is_there_the_cpu_computes() -> None:
    assert add_providers(Ort(), Settings(), [CUDA], ProviderTuning()) == [CPU]


@pytest.mark.usefixtures("no_plugin")
def test_what_tensorrt_does_not_take_stays_on_the_gpu() -> None:
    ort = Ort(TENSORRT, CUDA)
    assert asked_providers(ort, ("Tensorrt",)) == [TENSORRT, CUDA]
    assert asked_providers(ort, ("Tensorrt", "CPU")) == [TENSORRT, CUDA, CPU]
    assert asked_providers(ort, ("CPU",)) == [CPU]


@pytest.mark.usefixtures("no_plugin")
@pytest.mark.parametrize(("name", "times"), [(CUDA, 1), (CPU, 0)])
def test_the_libraries_of_cuda_are_looked_for_where_pip_puts_them(name, times) -> None:
    ort = Ort(CUDA)
    add_providers(ort, Settings(), [name], ProviderTuning())
    assert ort.preloaded == times


@pytest.mark.usefixtures("no_plugin")
def test_a_release_that_cannot_look_for_them_is_used_as_it_is(monkeypatch) -> None:
    monkeypatch.delattr(Ort, "preload_dlls")
    assert add_providers(Ort(CUDA), Settings(), [CUDA], ProviderTuning()) == [
        (CUDA, {"use_tf32": "0"})
    ]


GRAPH = GraphSpec(
    "refine",
    "sac.onnx",
    (
        TensorSpec("image", "float32", ("survivors", 3, 8, 8)),
        TensorSpec("target_index", "int64", ("survivors", 4)),
    ),
    (TensorSpec("logits", "float32", ("survivors", 7)),),
)
SHAPES = {
    "profile_min_shapes": "image:1x3x8x8,target_index:1x4",
    "profile_opt_shapes": "image:8x3x8x8,target_index:8x4",
    "profile_max_shapes": "image:128x3x8x8,target_index:128x4",
}


@pytest.mark.usefixtures("no_plugin")
def test_tensorrt_builds_for_a_range_of_batches_at_once(tmp_path) -> None:
    asked = [TENSORRT, CUDA]
    tuning = ProviderTuning(tmp_path, GRAPH, record=False)
    (_, options), cuda = add_providers(Ort(TENSORRT, CUDA), Settings(), asked, tuning) or []
    assert {name: options[f"trt_{name}"] for name in SHAPES} == SHAPES
    assert cuda == (CUDA, {"use_tf32": "0"})


@pytest.mark.usefixtures("plugin")
def test_the_plugin_builds_for_a_range_and_records() -> None:
    settings = Settings()
    add_providers(Ort(), settings, [TENSORRT_RTX], ProviderTuning(None, GRAPH, record=True))
    shapes = {f"nv_{name}": value for name, value in SHAPES.items()}
    assert settings.added == {"enable_cuda_graph": "1", **shapes}


@pytest.mark.usefixtures("no_plugin")
def test_the_cuda_provider_records_when_it_is_told_to() -> None:
    tuning = ProviderTuning(None, GRAPH, record=True)
    found = add_providers(Ort(CUDA), Settings(), [CUDA], tuning)
    assert found == [(CUDA, {"use_tf32": "0", "enable_cuda_graph": "1"})]


def test_a_graph_for_one_picture_needs_no_range() -> None:
    fixed = GraphSpec("single", "model.onnx", (TensorSpec("image", "uint8", (1, 3, 8, 8)),))
    assert profile_shapes("trt", fixed) == profile_shapes("trt", None) == {}
