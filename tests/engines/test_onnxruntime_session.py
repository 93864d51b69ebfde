from __future__ import annotations

import dataclasses
import sys
import types
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from sacvit_deploy.engines import onnxruntime_session
from sacvit_deploy.engines.machine import Gpu, Machine
from sacvit_deploy.engines.onnxruntime_session import (
    CPU,
    CUDA,
    TENSORRT,
    TENSORRT_RTX,
    OnnxRuntimeSession,
    OrtTensor,
    ProviderWarning,
    add_providers,
    asked_providers,
    available_providers,
    unavailable_providers,
)
from sacvit_deploy.engines.session import SessionOptions, sharing_memory
from sacvit_deploy.errors import EngineError, MissingDependencyError
from sacvit_deploy.spec import COARSE_FEATURES, IMAGE, LOGITS, SCORE, TensorSpec
from tests.fakes import random_images


@pytest.fixture
def path(bundle):
    return bundle.graph_path(bundle.graph("early_exit"))


def test_every_output_comes_back_by_name(bundle, path) -> None:
    session = OnnxRuntimeSession(path, SessionOptions(threads=1))
    images = random_images(3)
    outputs = session.run({IMAGE: images})
    assert set(outputs) == {spec.name for spec in bundle.graph("early_exit").outputs}
    wanted = np.exp(images.mean(axis=(1, 2, 3)))[:, None] * np.linspace(0.5, 2, 7)
    np.testing.assert_allclose(outputs[LOGITS], wanted, rtol=1e-5)


def test_the_graph_declares_what_the_bundle_says(bundle, path) -> None:
    assert OnnxRuntimeSession(path).inputs == bundle.graph("early_exit").inputs


@pytest.mark.parametrize(
    ("kind", "tensor", "says"),
    [
        ("outputs", TensorSpec(LOGITS, "float32", ("batch", 9)), "output 'logits' is float32 of"),
        ("outputs", TensorSpec(LOGITS, "int64", ("batch", 7)), r"not int64 of shape \(batch, 7\)"),
        ("outputs", TensorSpec(LOGITS, "float32", ("batch", 7, 1)), "output 'logits' is"),
        ("outputs", TensorSpec("answers", "float32", ("batch", 7)), "output 'answers' is missing"),
        ("inputs", TensorSpec("pixels", "float32", ("batch", 3)), "input 'pixels' is missing"),
    ],
)
def test_a_graph_with_other_tensors_than_its_contract_is_refused(
    bundle, path, kind, tensor, says
) -> None:
    entry = bundle.graph("early_exit")
    OnnxRuntimeSession(path, graph=entry)
    contract = dataclasses.replace(entry, **{kind: (tensor, *getattr(entry, kind)[1:])})
    with pytest.raises(EngineError, match=says):
        OnnxRuntimeSession(path, graph=contract)


def test_a_graph_that_gives_other_rows_than_it_declares_is_one_error(
    bundle, path, monkeypatch
) -> None:
    session = OnnxRuntimeSession(path, graph=bundle.graph("early_exit"))
    run = session._session.run
    monkeypatch.setattr(session, "_session", types.SimpleNamespace(
        run=lambda names, feeds: [array[:1] for array in run(names, feeds)]
    ))  # fmt: skip
    with pytest.raises(EngineError, match=r"shape \(1, .* says float32 of shape \(2, "):
        session.run({IMAGE: random_images(2)})


def test_feeds_are_checked_before_the_run(path) -> None:
    with pytest.raises(EngineError, match="'image' is float64"):
        OnnxRuntimeSession(path).run({IMAGE: random_images(1).astype(np.float64)})


@pytest.mark.parametrize("content", [b"", b"not a graph", None])
def test_a_file_that_is_no_graph_is_refused(tmp_path, content) -> None:
    file = tmp_path / "bad.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EngineError, match=r"cannot load .*bad\.onnx"):
        OnnxRuntimeSession(file)


@pytest.mark.parametrize("name", [CPU, "CPU", "cpu"])
def test_the_cpu_is_obtained_when_asked_for(path, name) -> None:
    assert OnnxRuntimeSession(path, SessionOptions((name,))).provider == CPU


def test_by_default_the_fastest_provider_is_taken(path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProviderWarning)  # a CUDA build on a machine without GPU
        provider = OnnxRuntimeSession(path).provider
    assert provider in {CPU, "CUDAExecutionProvider"}


def test_another_provider_than_asked_for_is_no_secret(path) -> None:
    import onnxruntime

    absent = next(
        name
        for name in onnxruntime.get_all_providers()
        if name not in onnxruntime.get_available_providers()
    )
    with pytest.warns(ProviderWarning, match=f"{absent} was asked for and {CPU} was obtained"):
        session = OnnxRuntimeSession(path, SessionOptions((absent, "CPU")))
    assert session.provider == CPU


def test_an_unknown_provider_is_refused(path) -> None:
    with pytest.raises(EngineError, match=f"'CUDDA'.\n.*{CPU}"):
        OnnxRuntimeSession(path, SessionOptions(("CUDDA",)))


def test_a_failure_inside_the_library_is_one_error(path, monkeypatch) -> None:
    session = OnnxRuntimeSession(path)

    class Exhausted:
        def run(self, *_):
            raise RuntimeError("out of memory")

    monkeypatch.setattr(session, "_session", Exhausted())
    with pytest.raises(EngineError, match="failed on CPUExecutionProvider: out of memory"):
        session.run({IMAGE: random_images(1)})


def test_what_the_library_prints_does_not_mix_with_json(path, monkeypatch, capsys) -> None:
    import onnxruntime

    create = onnxruntime.InferenceSession

    def talk(*arguments, **options):
        sys.stdout.write("EP Error\n")
        return create(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", talk)
    OnnxRuntimeSession(path, SessionOptions(("CPU",)))
    assert capsys.readouterr() == ("", "EP Error\n")


def test_a_provider_that_fails_is_not_replaced_by_another(path, capsys) -> None:
    """By default the library computes again on the CPU, and stays there."""
    from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

    session = OnnxRuntimeSession(path, SessionOptions(("CPU",)))
    real = session._session._sess

    class Failing:
        def __getattr__(self, name):
            return getattr(real, name)

        def run(self, *_):
            raise EPFail("the GPU fell off the bus")

    session._session._sess = Failing()
    with pytest.raises(EngineError, match="the GPU fell off the bus"):
        session.run({IMAGE: random_images(1)})
    assert capsys.readouterr().out == ""


def test_a_missing_library_says_what_to_install(path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="pip install onnxruntime"):
        OnnxRuntimeSession(path)


def test_idle_threads_leave_the_cores_to_the_other_stage(path) -> None:
    settings = OnnxRuntimeSession(path)._session.get_session_options()
    assert settings.get_session_config_entry("session.force_spinning_stop") == "1"


def test_workers_share_the_cores(path, monkeypatch) -> None:
    monkeypatch.setattr("sacvit_deploy.engines.session.usable_cores", lambda: 6)
    opened = OnnxRuntimeSession(path, SessionOptions(workers=2))
    assert opened._session.get_session_options().intra_op_num_threads == 3


def test_a_closed_session_lets_go_of_the_graph_and_says_so(path) -> None:
    session = OnnxRuntimeSession(path, SessionOptions(("CPU",)))
    graph = weakref.ref(session._session)
    _, kept = session.run_on_device({IMAGE: random_images(2)}, (SCORE,))
    handle = kept[SCORE]
    assert isinstance(handle, OrtTensor)
    before = handle.value.numpy().copy()
    session.close()
    session.close()
    assert graph() is None
    assert session.provider == CPU
    np.testing.assert_array_equal(handle.value.numpy(), before)
    with pytest.raises(EngineError, match=r"ee\.onnx was used after it was closed"):
        session.run({IMAGE: random_images(1)})
    with pytest.raises(EngineError, match="closed"):
        session.run_on_device({IMAGE: random_images(1)}, (SCORE,))


def test_threads_share_a_session(path) -> None:
    session = OnnxRuntimeSession(path, SessionOptions(threads=1))
    images = random_images(16)
    wanted = session.run({IMAGE: images})[LOGITS]
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda image: session.run({IMAGE: image[None]})[LOGITS][0], images))
    np.testing.assert_allclose(rows, wanted, rtol=1e-6)


def test_bound_inputs_and_outputs_give_the_same(path) -> None:
    session = OnnxRuntimeSession(path, SessionOptions(("CPU",), 1))
    images = random_images(3)
    wanted = session.run({IMAGE: images})
    arrays, kept = session.run_on_device({IMAGE: images}, (SCORE, IMAGE))
    assert arrays.keys() == wanted.keys() - {SCORE}
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, wanted[name])
    assert kept[SCORE].dtype == np.dtype(np.float32)
    assert kept[SCORE].shape == wanted[SCORE].shape
    again, _ = session.run_on_device({IMAGE: kept[IMAGE]}, (COARSE_FEATURES,))
    np.testing.assert_array_equal(again[SCORE], wanted[SCORE])


def test_a_kept_tensor_outlives_further_runs(path) -> None:
    session = OnnxRuntimeSession(path, SessionOptions(("CPU",), 1))
    first, _ = session.run_on_device({IMAGE: random_images(2)}, ())
    _, kept = session.run_on_device({IMAGE: random_images(2)}, (SCORE,))
    session.run_on_device({IMAGE: random_images(2, seed=1)}, (SCORE,))
    handle = kept[SCORE]
    assert isinstance(handle, OrtTensor)
    np.testing.assert_array_equal(handle.value.numpy(), first[SCORE])


def test_handles_are_checked_like_arrays(path) -> None:
    session = OnnxRuntimeSession(path, SessionOptions(("CPU",), 1))
    _, kept = session.run_on_device({IMAGE: random_images(2)}, (SCORE,))
    with pytest.raises(EngineError, match="'image' is float32 of shape"):
        session.run_on_device({IMAGE: kept[SCORE]}, ())


def test_the_cpu_has_no_memory_of_its_own(path) -> None:
    session = OnnxRuntimeSession(path, SessionOptions(("CPU",)))
    assert session.memory is None
    assert sharing_memory(session, session) is None


def test_a_failure_of_a_bound_run_is_one_error(path, monkeypatch) -> None:
    session = OnnxRuntimeSession(path, SessionOptions(("CPU",)))
    monkeypatch.setattr(session, "_uploaded", lambda *_: 1 / 0)
    with pytest.raises(EngineError, match="failed on CPUExecutionProvider: division by zero"):
        session.run_on_device({IMAGE: random_images(1)}, ())


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
    assert add_providers(ort, settings, asked, tmp_path) is None
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
    monkeypatch.setattr(onnxruntime_session, "this_machine", lambda: machine)
    ort, settings = Ort(gpus=2), Settings()
    add_providers(ort, settings, [TENSORRT_RTX], None)
    assert settings.device == (TENSORRT_RTX, str(current))


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.7", "8.9", "9.0", "11.0", "12.0", "12.1"])
def test_the_plugin_is_offered_on_supported_gpus_only(monkeypatch, capability) -> None:
    fits = capability in ("8.6", "8.9", "12.0", "12.1")
    monkeypatch.setattr(onnxruntime_session, "this_machine", lambda: gpus(capability))
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
def test_tensorrt_inside_onnxruntime_is_only_taken_when_asked_for(tmp_path) -> None:
    ort, settings = Ort(TENSORRT, CUDA), Settings()
    assert asked_providers(ort, None) == [CUDA, CPU]
    asked = asked_providers(ort, ("tensorrt", "CUDA"))
    providers = add_providers(ort, settings, asked, tmp_path / "cache")
    assert providers is not None
    (name, options), cuda = providers
    assert (name, cuda) == (TENSORRT, (CUDA, {"use_tf32": "0"}))
    assert options["trt_engine_cache_path"] == str(tmp_path / "cache" / "tensorrt")
    assert (tmp_path / "cache" / "tensorrt").is_dir()
    assert settings.added is None


@pytest.mark.usefixtures("no_plugin")
def test_where_nothing_asked_for_is_there_the_cpu_computes() -> None:
    assert add_providers(Ort(), Settings(), [CUDA], None) == [CPU]


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
    add_providers(ort, Settings(), [name], None)
    assert ort.preloaded == times


@pytest.mark.usefixtures("no_plugin")
def test_a_release_that_cannot_look_for_them_is_used_as_it_is(monkeypatch) -> None:
    monkeypatch.delattr(Ort, "preload_dlls")
    assert add_providers(Ort(CUDA), Settings(), [CUDA], None) == [(CUDA, {"use_tf32": "0"})]
