"""The real library computes; only devices that are not here are stood in for."""

from __future__ import annotations

import dataclasses
import gc
import sys
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sacvit_deploy.engines import openvino_session
from sacvit_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from sacvit_deploy.engines.openvino_session import (
    OpenVinoSession,
    asked_device,
    available_devices,
    half_precision,
    openvino,
)
from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.errors import EngineError, MissingDependencyError
from sacvit_deploy.spec import IMAGE, LOGITS, TensorSpec
from tests.fakes import random_images

pytest.importorskip("openvino", reason="needs the openvino extra")

ONE_THREAD = SessionOptions(threads=1)


@pytest.fixture
def entry(bundle):
    return bundle.graph("early_exit")


@pytest.fixture
def path(bundle, entry):
    return bundle.graph_path(entry)


@pytest.fixture
def session(path, entry):
    return OpenVinoSession(path, entry, ONE_THREAD)


class OtherDevices:
    """The real core, which gives other names and properties of devices."""

    def __init__(self, *devices, able=("FP32", "FP16", "BF16")) -> None:
        self.real = openvino().Core()
        self.available_devices = list(devices)
        self.able = list(able)
        self.asked: list[tuple[str, dict]] = []

    def get_property(self, device, name):
        return self.able if name == "OPTIMIZATION_CAPABILITIES" else f"A {device} "

    def read_model(self, path):
        return self.real.read_model(path)

    def compile_model(self, model, device, settings):
        self.asked.append((device, settings))
        return self.real.compile_model(model, "CPU", settings)


@pytest.fixture
def devices(monkeypatch):
    def replace(*names, **more) -> OtherDevices:
        core = OtherDevices(*names, **more)
        monkeypatch.setattr(openvino_session, "_core", lambda library: core)
        return core

    return replace


@pytest.mark.parametrize("count", [1, 3])
def test_it_computes_what_onnxruntime_computes(session, path, entry, count) -> None:
    feeds = {IMAGE: random_images(count)}
    wanted = OnnxRuntimeSession(path, graph=entry).run(feeds)
    found = session.run(feeds)
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        assert array.dtype == wanted[name].dtype
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5)


def test_results_stay_as_they_were_after_later_runs(session) -> None:
    first = session.run({IMAGE: random_images(2)})
    before = {name: array.copy() for name, array in first.items()}
    session.run({IMAGE: random_images(2, seed=1)})
    session.close()
    del session
    gc.collect()
    for name, array in first.items():
        np.testing.assert_array_equal(array, before[name])
        array[:] = 0  # they are the caller's


def test_inputs_are_read_where_they_are_and_results_left_where_they_were_written(
    session, monkeypatch
) -> None:
    images = random_images(2)
    given: dict[str, Any] = {}
    graph = session._graphs.of({})
    request = graph._idle_request()

    class Spy:
        def set_tensor(self, name, tensor) -> None:
            given.setdefault(name, tensor)
            request.set_tensor(name, tensor)

        def infer(self, *arguments, **options) -> None:
            request.infer(*arguments, **options)

    monkeypatch.setattr(graph, "_idle", [Spy()])
    outputs = session.run({IMAGE: images})
    assert np.shares_memory(given[IMAGE].data, images)
    for name, array in outputs.items():
        assert np.shares_memory(given[name].data, array)


def test_an_idle_request_holds_no_input(session) -> None:
    """Its memory belongs to the caller, who may give it to something else."""
    session.run({IMAGE: random_images(4)})
    (request,) = session._graphs.of({})._idle
    assert request.get_tensor(IMAGE).get_size() == 0


@pytest.mark.parametrize("change", ["read-only", "reversed"])
def test_inputs_that_the_library_would_refuse_are_copied(session, change) -> None:
    images = random_images(2)
    wanted = session.run({IMAGE: images[:, ::-1].copy() if change == "reversed" else images})
    given = images[:, ::-1] if change == "reversed" else images
    given.setflags(write=False)
    np.testing.assert_array_equal(session.run({IMAGE: given})[LOGITS], wanted[LOGITS])


def test_threads_share_a_session(session) -> None:
    images = random_images(32)
    wanted = session.run({IMAGE: images})[LOGITS]
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda image: session.run({IMAGE: image[None]})[LOGITS][0], images))
    np.testing.assert_allclose(rows, wanted, rtol=1e-6)
    assert 1 <= len(session._graphs.of({})._idle) <= 4


def test_a_closed_session_lets_go_of_the_graph_and_says_so(session) -> None:
    graph = weakref.ref(session._graphs.of({}))
    session.run({IMAGE: random_images(1)})
    session.close()
    session.close()
    assert graph() is None
    with pytest.raises(EngineError, match=r"ee\.onnx was used after it was closed"):
        session.run({IMAGE: random_images(1)})


def test_a_call_at_work_while_the_session_is_closed_returns(session, monkeypatch) -> None:
    images = random_images(2)
    wanted = session.run({IMAGE: images})[LOGITS]
    graph = session._graphs.of({})
    idle_request = graph._idle_request

    def closing():
        session.close()
        return idle_request()

    monkeypatch.setattr(graph, "_idle_request", closing)
    np.testing.assert_array_equal(session.run({IMAGE: images})[LOGITS], wanted)


def test_feeds_are_checked_before_the_run(session) -> None:
    with pytest.raises(EngineError, match="'image' is float64"):
        session.run({IMAGE: random_images(1).astype(np.float64)})


def test_a_failure_inside_the_library_is_one_error(session, monkeypatch) -> None:
    def exhausted():
        raise RuntimeError("out of memory")

    monkeypatch.setattr(session._graphs.of({}), "_idle_request", exhausted)
    with pytest.raises(EngineError, match="failed on CPU f32: out of memory"):
        session.run({IMAGE: random_images(1)})


@pytest.mark.parametrize("content", [b"", b"not a graph", None])
def test_a_file_that_is_no_graph_is_refused(tmp_path, entry, content) -> None:
    file = tmp_path / "bad.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EngineError, match=r"cannot load .*bad\.onnx on CPU"):
        OpenVinoSession(file, entry)


@pytest.mark.parametrize(
    ("kind", "tensor", "says"),
    [
        ("outputs", TensorSpec(LOGITS, "float32", ("batch", 9)), "output 'logits' is float32 of"),
        ("outputs", TensorSpec(LOGITS, "int64", ("batch", 7)), r"not int64 of shape \(batch, 7\)"),
        ("outputs", TensorSpec("answers", "float32", ("batch", 7)), "output 'answers' is missing"),
        ("inputs", TensorSpec("pixels", "float32", ("batch", 3)), "input 'pixels' is missing"),
    ],
)
def test_a_graph_with_other_tensors_than_its_contract_is_refused(
    path, entry, kind, tensor, says
) -> None:
    contract = dataclasses.replace(entry, **{kind: (tensor, *getattr(entry, kind)[1:])})
    with pytest.raises(EngineError, match=says):
        OpenVinoSession(path, contract)


def test_a_tensor_of_a_type_that_no_bundle_has_is_refused(tmp_path, entry) -> None:
    value = helper.make_tensor_value_info("image", TensorProto.DOUBLE, ["batch", 3])
    same = helper.make_tensor_value_info("logits", TensorProto.DOUBLE, ["batch", 3])
    graph = helper.make_graph(
        [helper.make_node("Neg", ["image"], ["logits"])], "g", [value], [same]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        tmp_path / "g.onnx",
    )
    with pytest.raises(EngineError, match=r"has 'image', which is f64 of shape \[\?,3\]"):
        OpenVinoSession(tmp_path / "g.onnx", entry)


def test_rows_that_the_contract_does_not_have_are_one_error(session, monkeypatch) -> None:
    run = session._graphs.of({}).run
    monkeypatch.setattr(
        session._graphs.of({}), "run", lambda feeds: {n: a[:1] for n, a in run(feeds).items()}
    )
    with pytest.raises(EngineError, match=r"shape \(1, .* says float32 of shape \(2, "):
        session.run({IMAGE: random_images(2)})


def test_fp32_is_fp32_on_every_machine(session) -> None:
    assert session.provider == "CPU f32"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_use_the_half_precision_of_the_machine(path, entry, precision) -> None:
    half = half_precision(openvino(), "CPU")
    lower = dataclasses.replace(entry, precision=precision)
    assert OpenVinoSession(path, lower).provider == f"CPU {half}"


def test_one_picture_in_int8_has_a_graph_of_its_own(path, entry) -> None:
    session = OpenVinoSession(path, dataclasses.replace(entry, precision="int8"), ONE_THREAD)
    images = random_images(3)
    rows = [session.run({IMAGE: image[None]}) for image in images]
    graphs = session._graphs
    assert graphs is not None
    assert graphs._any_size is None, "more rows have not come yet"
    assert graphs.of({"batch": 1}) is not graphs.of({"batch": 2})
    for name, array in session.run({IMAGE: images}).items():
        np.testing.assert_allclose(np.concatenate([row[name] for row in rows]), array, rtol=0.01)


@pytest.mark.parametrize(
    ("able", "half"),
    [(("FP32", "BF16", "FP16"), "f16"), (("FP32", "BF16"), "bf16"), (("FP32", "INT8"), "f32")],
)
def test_the_more_exact_half_precision_is_taken(devices, able, half) -> None:
    devices("CPU", able=able)
    assert half_precision(openvino(), "CPU") == half


def test_the_cpu_is_taken_unless_another_device_is_named(devices) -> None:
    devices("CPU", "GPU.0", "GPU.1", "NPU")
    library = openvino()
    assert asked_device(library, None) == "CPU"
    assert asked_device(library, ("gpu",)) == "GPU"
    assert asked_device(library, ("GPU.1", "CPU")) == "GPU.1"
    assert asked_device(library, ("GPU.2", "NPU")) == "NPU"
    with pytest.raises(EngineError, match=r"no device 'CUDA' or 'GPU\.3' here\.\nIt has: CPU, GPU"):
        asked_device(library, ("CUDA", "GPU.3"))


def test_devices_are_listed_with_what_they_are(devices) -> None:
    assert next(iter(available_devices(openvino()))) == "CPU"
    devices("GPU")
    assert available_devices(openvino()) == {"GPU": "A GPU"}


def test_only_a_gpu_keeps_compiled_kernels_and_only_a_cpu_has_threads(
    devices, tmp_path, path, entry
) -> None:
    """Flipped bits in a CPU's cache, which has the weights in it, would not be noticed."""
    core, cache = devices("CPU", "GPU"), tmp_path / "caches" / "openvino"
    for device in ("CPU", "GPU"):
        OpenVinoSession(path, entry, SessionOptions((device,), 1), cache=cache)
    (on_cpu, cpu), (on_gpu, gpu) = core.asked
    assert (on_cpu, on_gpu) == ("CPU", "GPU")
    assert (cpu["INFERENCE_NUM_THREADS"], cpu.get("CACHE_DIR")) == (1, None)
    assert (gpu.get("INFERENCE_NUM_THREADS"), gpu["CACHE_DIR"]) == (None, str(cache))
    assert list(cache.glob("*.blob"))


def test_each_worker_has_a_stream_of_the_library(devices, path, entry) -> None:
    core = devices("CPU")
    OpenVinoSession(path, entry, SessionOptions(threads=2, workers=3))
    assert (core.asked[0][1]["NUM_STREAMS"], core.asked[0][1]["INFERENCE_NUM_THREADS"]) == (3, 6)


def test_a_cache_that_cannot_be_made_is_done_without(devices, tmp_path, path, entry) -> None:
    core, file = devices("GPU"), tmp_path / "file"
    file.touch()
    OpenVinoSession(path, entry, SessionOptions(("GPU",)), cache=file / "cache")
    assert "CACHE_DIR" not in core.asked[0][1]


def test_a_missing_library_says_what_to_install(path, entry, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sacvit-deploy\[openvino\]'"):
        OpenVinoSession(path, entry)


def test_a_library_that_cannot_start_is_one_error(monkeypatch) -> None:
    def broken(module, purpose) -> types.ModuleType:
        raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(openvino_session, "require", broken)
    with pytest.raises(MissingDependencyError, match=r"cannot be imported: libtbb\.so\.12"):
        openvino()
