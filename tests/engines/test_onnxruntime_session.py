from __future__ import annotations

import dataclasses
import sys
import types
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sacvit_deploy.engines.onnxruntime_providers import CPU
from sacvit_deploy.engines.onnxruntime_session import (
    OnnxRuntimeSession,
    OrtTensor,
    ProviderWarning,
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
    monkeypatch.setattr(session, "_bound", lambda *_: 1 / 0)
    with pytest.raises(EngineError, match="failed on CPUExecutionProvider: division by zero"):
        session.run_on_device({IMAGE: random_images(1)}, ())
