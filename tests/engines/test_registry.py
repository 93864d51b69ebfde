from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest

import sacvit_deploy
from sacvit_deploy.bundle import Bundle, demo_bundle
from sacvit_deploy.bundle_changes import new_bundle, write_manifest
from sacvit_deploy.engines import compatibility, registry
from sacvit_deploy.engines.machine import Machine
from sacvit_deploy.engines.registry import EngineWarning, backends, open_sessions
from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.errors import (
    BundleError,
    BundleIntegrityError,
    ConfigError,
    EngineError,
    MissingDependencyError,
)
from sacvit_deploy.spec import LOGITS
from tests.engines.tiny_onnx import write_graph
from tests.exit_records import exit_record
from tests.fakes import fake_manifest, random_pictures


@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "openvino"])
def test_one_backend_opens_every_role(bundle, backend) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="needs the openvino extra")
    opened = open_sessions(bundle, backend=backend)
    assert opened.backend == ("onnxruntime" if backend == "auto" else backend)
    assert list(opened.sessions) == ["early_exit", "refine"]
    assert opened.provider == opened.sessions["refine"].provider


@pytest.mark.parametrize("name", ["answers", "score"])
def test_graphs_of_another_network_are_refused_before_the_first_picture(tmp_path, name) -> None:
    manifest = fake_manifest()
    with new_bundle(tmp_path / "bundle") as staging:
        for graph in manifest.graphs:
            renamed = tuple(
                dataclasses.replace(spec, name=name)
                for spec in graph.outputs
                if spec.name == LOGITS
            )
            others = tuple(spec for spec in graph.outputs if spec.name not in (LOGITS, name))
            written = dataclasses.replace(graph, outputs=(*renamed, *others))
            write_graph(staging / graph.file, written)
        write_manifest(staging, manifest)
    with pytest.raises(EngineError, match=r"not the early_exit graph .*output 'logits' is missing"):
        sacvit_deploy.load(tmp_path / "bundle", backend="onnxruntime")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
@pytest.mark.parametrize("linked", [["weights.bin"], ["bundle.json", "ee.onnx", "weights.bin"]])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_weights_linked_from_another_folder_are_read_and_checked(tmp_path, linked, backend) -> None:
    """As in a cache of Hugging Face, where every file is a link."""
    pytest.importorskip(backend, reason=f"needs {backend}")
    folder, blobs = shutil.copytree(demo_bundle(), tmp_path / "bundle"), tmp_path / "blobs"
    blobs.mkdir()
    for number, name in enumerate(linked):
        (folder / name).rename(blobs / str(number))
        (folder / name).symlink_to(blobs / str(number))
    picture = random_pictures(1)[0]
    with (
        sacvit_deploy.load(folder, backend=backend) as found,
        sacvit_deploy.load(demo_bundle(), backend=backend) as wanted,
    ):
        assert found(picture, eta=1.0) == wanted(picture, eta=1.0)
    assert list(Bundle.open(folder).linked_weights()) == ["weights.bin"]
    assert Bundle.open(demo_bundle()).linked_weights() == {}
    weights = blobs / str(len(linked) - 1)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleIntegrityError, match=r"weights\.bin .*SHA-256 differs"):
        sacvit_deploy.load(folder)


def test_auto_says_why_the_others_were_not_taken(bundle) -> None:
    skipped = open_sessions(bundle).skipped
    assert set(skipped) >= set(backends()) - {"onnxruntime"}
    assert "has no tensorrt engine for each of its graphs; it has none" in skipped["tensorrt"]


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_engine_says_how_to_build_it(bundle, backend) -> None:
    with pytest.raises(EngineError, match=f"build-engine .* --runtime {backend}$"):
        open_sessions(bundle, backend=backend)


def test_an_unknown_backend_is_refused(bundle) -> None:
    with pytest.raises(EngineError, match=r"'openvivo'\.\nChoose auto, fastest, tensorrt"):
        open_sessions(bundle, backend="openvivo")


def test_a_missing_backend_is_named_when_asked_for(bundle, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="onnxruntime"):
        open_sessions(bundle, backend="onnxruntime")
    with pytest.raises(EngineError, match=r"No backend can run(.|\n)*onnxruntime: Running"):
        open_sessions(bundle)


@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "openvino"])
def test_a_precision_that_is_not_there_is_refused(bundle, backend) -> None:
    with pytest.raises(BundleError, match="no early_exit graph in int8"):
        open_sessions(bundle, backend=backend, precision="int8")


def test_auto_takes_the_first_that_works(bundle, monkeypatch) -> None:
    table = {"fast": backends()["onnxruntime"], "slow": backends()["tensorrt"]}
    monkeypatch.setattr(registry, "backends", lambda: table)
    opened = open_sessions(bundle)
    assert opened.backend == "onnxruntime"
    assert not {"fast", "slow"} & set(opened.skipped)


@pytest.mark.parametrize("times", [(3.0, 2.0), (2.0, 3.0)])
def test_the_fastest_is_measured(bundle, monkeypatch, times) -> None:
    pytest.importorskip("openvino", reason="needs the openvino extra")
    measured: list = []

    def picture_ms(candidates, graphs):
        assert set(graphs) == {"early_exit", "refine"}
        measured.extend(candidates)
        return list(times)

    monkeypatch.setattr(registry, "picture_ms", picture_ms)
    opened = open_sessions(bundle, backend="fastest")
    names = ["openvino", "onnxruntime"]
    taken = times.index(min(times))
    assert opened.backend == names[taken]
    assert opened.sessions == measured[taken]
    assert opened.skipped[names[1 - taken]] == (
        f"It takes 3.0 ms for a picture in all graphs, {names[taken]} 2.0."
    )
    assert "has no tensorrt engine" in opened.skipped["tensorrt"]
    with pytest.raises(EngineError, match="closed"):
        measured[1 - taken]["early_exit"].run({})


def test_a_backend_that_cannot_run_is_not_measured(bundle, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    opened = open_sessions(bundle, backend="fastest")
    assert opened.backend == "onnxruntime"
    assert "not installed" in opened.skipped["openvino"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"No backend can run(.|\n)*onnxruntime: Running"):
        open_sessions(bundle, backend="fastest")


def test_the_engines_of_this_machine_are_measured_too(workplace, monkeypatch) -> None:
    monkeypatch.setattr(registry, "picture_ms", lambda candidates, graphs: [1.0])
    table = {"tensorrt": backends()["tensorrt"]}
    monkeypatch.setattr(registry, "backends", lambda: table)
    assert open_sessions(workplace.bundle("tensorrt"), backend="fastest").backend == "tensorrt"


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_auto_takes_the_engines_of_this_machine(workplace, backend) -> None:
    opened = open_sessions(workplace.bundle(backend))
    assert (opened.backend, opened.precision, opened.largest_batch) == (backend, "fp32", 8)
    assert opened.provider.startswith("TensorRT")
    assert ("tensorrt" in opened.skipped) == (backend == "tensorrt-rtx")


def test_an_engine_of_another_machine_is_skipped_without_a_warning(workplace, monkeypatch) -> None:
    bundle = workplace.bundle(selection="host")
    monkeypatch.setattr(compatibility, "this_machine", lambda: Machine("linux-x86_64", None, ()))
    opened = open_sessions(bundle)
    assert opened.backend == "onnxruntime"
    assert "built for compute capability 8.6" in opened.skipped["tensorrt"]


def test_an_engine_that_fits_and_fails_is_no_secret(workplace) -> None:
    workplace.gpu.capacity = 1
    with pytest.warns(EngineWarning, match="could not be started, so onnxruntime computes"):
        opened = open_sessions(workplace.bundle(selection="host"))
    assert (opened.backend, opened.largest_batch) == ("onnxruntime", None)
    assert "MiB left" in opened.skipped["tensorrt"]


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_auto_goes_on_where_the_library_does_not_start(workplace, backend) -> None:
    """The bindings raise `TypeError`: a driver that is too old for the library, for example."""
    workplace.library(backend).refuse = {"Runtime"}
    bundle = workplace.bundle(backend, selection="host")
    with pytest.raises(EngineError, match=r"does not start on this machine:\n  CUDA init.*: 35\n"):
        open_sessions(bundle, backend=backend)
    with pytest.warns(EngineWarning, match="could not be started, so onnxruntime computes"):
        opened = open_sessions(bundle)
    assert opened.backend == "onnxruntime"
    assert "CUDA initialization failure with error: 35" in opened.skipped[backend]


def test_an_engine_that_was_changed_is_not_loaded_and_the_graphs_are(workplace) -> None:
    bundle = workplace.bundle(selection="host")
    bundle.engine_path(bundle.engines()[0]).write_bytes(b"{}")
    with pytest.raises(BundleIntegrityError, match="not the file that was built"):
        open_sessions(bundle, backend="tensorrt")
    with pytest.warns(EngineWarning, match=r"onnxruntime computes.*(?s:.)*Build it again: "):
        opened = open_sessions(Bundle.open(bundle.path))
    assert opened.backend == "onnxruntime"
    assert "not the file that was built" in opened.skipped["tensorrt"]


def test_an_engine_of_one_graph_only_is_not_enough(workplace) -> None:
    bundle = workplace.bundle(roles=("early_exit",))
    with pytest.raises(EngineError, match="it has early_exit in fp32"):
        open_sessions(bundle, backend="tensorrt")


def test_a_precision_without_engines_names_the_command(workplace) -> None:
    with pytest.raises(EngineError, match=r"engine in fp16 for each.*\n.*--fp16 --runtime"):
        open_sessions(workplace.bundle(), backend="tensorrt", precision="fp16")


def test_who_asks_for_a_provider_means_onnxruntime(workplace) -> None:
    opened = open_sessions(workplace.bundle(selection="host"), options=SessionOptions(("CPU",)))
    assert opened.backend == "onnxruntime"
    assert "providers of ONNX Runtime were asked for: CPU" in opened.skipped["tensorrt"]


@pytest.fixture
def lower_bundle(tmp_path) -> Bundle:
    """A bundle that says of each graph that it is there in INT8 and FP16, too."""
    manifest = fake_manifest()
    added = tuple(
        dataclasses.replace(graph, precision=precision, file=f"{precision}.{graph.file}")
        for graph in manifest.graphs
        for precision in ("int8", "fp16")
    )
    with new_bundle(tmp_path / "lower") as staging:
        for graph in (*manifest.graphs, *added):
            write_graph(staging / graph.file, graph)
        write_manifest(staging, dataclasses.replace(manifest, graphs=manifest.graphs + added))
    return Bundle.open(tmp_path / "lower")


@pytest.fixture
def x86_64(monkeypatch) -> None:
    """A CPU for which it is known what is fast, and no GPU."""
    pytest.importorskip("openvino", reason="needs the openvino extra")
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(registry, "asked_providers", lambda ort, names: ["CPUExecutionProvider"])
    monkeypatch.setattr(registry, "half_precision", lambda library: "f16")


@pytest.mark.usefixtures("x86_64")
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_auto_takes_openvino_where_it_is_faster(lower_bundle, precision) -> None:
    opened = open_sessions(lower_bundle, precision=precision)
    assert (opened.backend, opened.precision) == ("openvino", precision)
    assert set(opened.skipped) == {"tensorrt", "tensorrt-rtx"}


@pytest.mark.usefixtures("x86_64")
@pytest.mark.parametrize(
    ("why", "precision", "providers"),
    [
        ("ONNX Runtime is as fast in FP32", None, None),
        ("ONNX Runtime is as fast in FP32", "fp32", None),
        ("It has only BF16 here", "fp16", None),
        ("Execution providers of ONNX Runtime were asked for", "int8", ("CPU",)),
        ("not known to be faster on a aarch64 CPU", "int8", None),
        ("ONNX Runtime computes on CUDAExecutionProvider", "int8", None),
        ("needs openvino, which is not installed", "int8", None),
        ("calibrated for onnxruntime in int8, and not for openvino", "int8", None),
    ],
)
def test_auto_takes_onnxruntime_where_openvino_is_not_known_to_be_faster(
    lower_bundle, monkeypatch, why, precision, providers
) -> None:
    if "aarch64" in why:
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    if "BF16" in why:
        monkeypatch.setattr(registry, "half_precision", lambda library: "bf16")
    if "CUDA" in why:
        monkeypatch.setattr(registry, "asked_providers", lambda *_: ["CUDAExecutionProvider"])
    if "installed" in why:
        monkeypatch.setitem(sys.modules, "openvino", None)
    if "calibrated" in why:
        calibrated = lower_bundle.manifest.with_calibration(exit_record("int8"))
        lower_bundle = dataclasses.replace(lower_bundle, manifest=calibrated)
    opened = open_sessions(
        lower_bundle, precision=precision, options=SessionOptions(providers, threads=1)
    )
    assert (opened.backend, opened.precision) == ("onnxruntime", precision or "fp32")
    assert why in opened.skipped["openvino"]


@pytest.mark.usefixtures("x86_64")
def test_auto_takes_openvino_if_the_exit_is_calibrated_for_it_too(lower_bundle) -> None:
    manifest = lower_bundle.manifest.with_calibration(exit_record("int8"))
    manifest = manifest.with_calibration(exit_record("int8", "openvino"))
    opened = open_sessions(dataclasses.replace(lower_bundle, manifest=manifest), precision="int8")
    assert opened.backend == "openvino"


@pytest.mark.usefixtures("x86_64")
def test_without_onnxruntime_auto_takes_openvino_for_lower_precisions(
    lower_bundle, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert open_sessions(lower_bundle, precision="int8").backend == "openvino"


def test_a_device_that_openvino_does_not_have_is_refused(bundle) -> None:
    pytest.importorskip("openvino", reason="needs the openvino extra")
    with pytest.raises(EngineError, match=r"no device 'TPU' here\.\nIt has: CPU"):
        sacvit_deploy.load(bundle.path, backend="openvino", providers="TPU")


def test_openvino_decides_as_onnxruntime_does() -> None:
    """The trained network in FP32; no picture near the threshold is left out."""
    pytest.importorskip("openvino", reason="needs the openvino extra")
    pictures = random_pictures(24)
    names = ("onnxruntime", "openvino")
    pipelines = [sacvit_deploy.load(demo_bundle(), eta=0.15, backend=name) for name in names]
    wanted, found = (pipeline(pictures) for pipeline in pipelines)
    assert {result.stage for result in wanted} == {"early_exit", "refine"}
    for one, other in zip(wanted, found, strict=True):
        assert (one.stage, one.label) == (other.stage, other.label)
        assert one.target_tokens == other.target_tokens
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
    streamed = list(pipelines[1].stream(pictures, batch_size=4))
    assert [r.label for r in streamed] == [r.label for r in found]


def test_a_better_provider_that_is_not_there_is_named(bundle) -> None:
    opened = open_sessions(bundle)
    if opened.provider == "CPUExecutionProvider":
        assert "onnxruntime CUDA" in opened.skipped
    assert not any(name.startswith("onnxruntime CPU") for name in opened.skipped)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt"])
def test_all_sessions_are_closed_at_once(workplace, backend) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="needs the openvino extra")
    bundle = workplace.bundle(selection="host")
    opened = open_sessions(bundle, backend=backend)
    opened.close()
    for role, session in opened.sessions.items():
        feeds = {
            spec.name: np.zeros([s if isinstance(s, int) else 1 for s in spec.shape], spec.dtype)
            for spec in bundle.graph(role).inputs
        }
        with pytest.raises(EngineError, match="closed"):
            session.run(feeds)


def test_a_pipeline_keeps_to_the_batch_of_its_engines(workplace) -> None:
    pictures = random_pictures(21)
    bundle = workplace.bundle()
    pipeline = sacvit_deploy.load(bundle.path, eta=0.19)
    assert pipeline._opened.backend == "tensorrt"
    results = pipeline(pictures)
    assert {result.stage for result in results} == {"early_exit", "refine"}
    streamed = list(pipeline.stream(pictures))
    singles = [pipeline(picture) for picture in pictures]
    assert [r.to_dict() for r in results] == [r.to_dict() for r in singles]
    assert results == streamed
    assert [r.index for r in streamed] == list(range(len(pictures)))
    with pytest.raises(EngineError, match="batch of 9"):
        pipeline(pictures, batch_size=9)


_FIRST_RESULT = """
import sys
import numpy as np
import sacvit_deploy

pipeline = sacvit_deploy.load(sys.argv[1], eta=1)
result = pipeline(np.zeros((40, 50, 3), np.uint8))
assert result.stage == "refine", result
heavy = {"torch", "onnx", "onnxscript", "onnx_graphsurgeon", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("eta", [None, 0.0, 1.0])
def test_load_gives_a_pipeline(bundle, eta) -> None:
    pipeline = sacvit_deploy.load(bundle.path, eta=eta, threads=1, providers=["CPU"])
    assert pipeline.eta == (0.5 if eta is None else eta)
    pictures = random_pictures(6)
    results = pipeline(pictures, batch_size=4)
    assert [result.label for result in results] == ["class 6"] * 6
    singles = [pipeline(picture).probability for picture in pictures]
    np.testing.assert_allclose([result.probability for result in results], singles, rtol=1e-6)
    streamed = [result.label for result in pipeline.stream(pictures, batch_size=4)]
    assert streamed == ["class 6"] * 6


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_workers_answer_as_one_does(backend) -> None:
    pytest.importorskip(backend, reason=f"needs the {backend} extra")
    pictures = random_pictures(40)
    with sacvit_deploy.load(demo_bundle(), backend=backend, threads=1) as alone:
        eta = alone.eta
        wanted = list(alone.stream(pictures, eta=eta, batch_size=4))
    with sacvit_deploy.load(demo_bundle(), backend=backend, workers=2, threads=1) as pipeline:
        found = list(pipeline.stream(pictures, eta=eta, batch_size=4))
    assert [(r.class_index, r.stage, r.target_tokens) for r in found] == [
        (r.class_index, r.stage, r.target_tokens) for r in wanted
    ]


def test_the_first_result_comes_soon_and_without_the_offline_half(bundle) -> None:
    """CPU time of the process: the clock depends on what else the machine does."""
    command = [sys.executable, "-c", _FIRST_RESULT, str(bundle.path)]
    before = os.times()
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    after = os.times()
    assert run.returncode == 0, run.stderr
    assert sum(after[2:4]) - sum(before[2:4]) < 2  # seconds of children, user and system


def test_mistakes_are_found_before_anything_is_loaded(bundle, tmp_path) -> None:
    with pytest.raises(ConfigError, match="eta"):
        sacvit_deploy.load(bundle.path, eta=2)
    with pytest.raises(BundleError, match="no such folder"):
        sacvit_deploy.load(tmp_path / "none")


def test_public_names_exist() -> None:
    for name in sacvit_deploy.__all__:
        assert getattr(sacvit_deploy, name) is not None
        assert name in dir(sacvit_deploy)
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        sacvit_deploy.magic  # noqa: B018
