from __future__ import annotations

import dataclasses
import importlib
import json

import numpy as np
import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.bundle_changes import publish, staging_folder, update_manifest
from sacvit_deploy.comparison.decisions import LIMITS, Decisions, compare_decisions
from sacvit_deploy.comparison.network import of_bundle
from sacvit_deploy.decode import decode, encode
from sacvit_deploy.errors import BundleError, BundleIntegrityError, ConfigError, DataError
from sacvit_deploy.exporters.precision import PrecisionRequest, add_precision
from sacvit_deploy.files import FileRecord
from sacvit_deploy.records import PrecisionRecord
from sacvit_deploy.runtime.load import load
from sacvit_deploy.runtime.scheduler import EVERY_PICTURE
from sacvit_deploy.spec import Precision
from tests.exporters.graphs import normalised
from tests.exporters.precision.conftest import PICTURES, as_random, copy_of
from tests.fakes import ENGINE


@pytest.fixture(params=["sac_host", "sac_graph", "dense_bundle"])
def precise(request, with_precisions) -> Bundle:
    made: Bundle = with_precisions(request.getfixturevalue(request.param))
    return made


def test_graphs_stand_beside_the_fp32_ones(precise):
    opened = Bundle.open(precise.path)
    assert opened.manifest == precise.manifest
    for graph in opened.manifest.graphs:
        original = opened.graph(graph.role)
        assert (graph.inputs, graph.outputs) == (original.inputs, original.outputs)
        stem = original.file.removesuffix(".onnx")
        wanted = {"fp32": f"{stem}.onnx"}.get(graph.precision, f"{stem}.{graph.precision}.onnx")
        assert graph.file == wanted
        of_engines = f"{stem}.int8-fp16.onnx" if graph.precision == "int8" else None
        assert graph.engine_file == of_engines
    names = {file.name for file in precise.path.iterdir()}
    assert {"weights.bin", "weights.fp16.bin", "weights.int8.bin"} <= names
    assert names == {"bundle.json", *opened.manifest.files}


def test_weights_shrink(precise):
    size = {p: precise.manifest.files[f"weights{p}.bin"].bytes for p in ("", ".fp16", ".int8")}
    assert size[".int8"] < size[".fp16"] < size[""]


def test_the_record_says_how_it_was_made(precise):
    half, int8 = (precise.manifest.precisions[name] for name in ("fp16", "int8"))
    assert decode(PrecisionRecord, json.loads(json.dumps(encode(int8)))) == int8
    assert half.data == "the pictures of the package, and noise"
    assert (half.method, half.smoothing) == (None, None)
    assert int8.method == "minmax"
    assert int8.pictures == int8.agreement.images == PICTURES
    assert len(int8.data_sha256) == 64
    assert int8.seed == 0
    assert set(int8.kept_in_fp32) == {graph.role for graph in precise.manifest.graphs}
    assert int8.tools["onnxruntime"]
    for role, shares in half.weight_shares.items():
        assert shares["half"] >= 0.95
        assert int8.linear_weight_shares[role]["int8"] >= 0.8


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("name", ["sac_host", "sac_graph"])
def test_decisions_in_onnx_runtime_are_those_of_fp32(name, precision, request, with_precisions):
    bundle = with_precisions(request.getfixturevalue(name))
    manifest = bundle.manifest
    pixels, floats = normalised(bundle, 32, seed=5)
    image = pixels if manifest.input_kind == "uint8" else floats
    wanted, found = (
        Decisions.of(of_bundle(bundle, p).scheduler.run(image, EVERY_PICTURE))
        for p in ("fp32", precision)
    )
    agreement = compare_decisions(wanted, found, manifest.config, manifest.eta)
    limits = LIMITS[precision]
    one = 1 / 32
    # No finer than one picture.
    assert agreement.exit_flip_rate <= max(limits.max_exit_flip_rate, one)
    assert agreement.target_overlap >= limits.min_target_overlap
    assert agreement.label_agreement >= (0.6 if precision == "int8" else 1 - one)
    assert agreement.max_probability_error > 0


def test_the_pipeline_takes_either(precise):
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for precision in ("fp32", "fp16", "int8"):
        result = load(precise.path, precision=precision, backend="onnxruntime")(picture)
        assert 0 < result.probability <= 1


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_the_same_request_gives_the_same_files(method, sac_graph, pictures, tmp_path):
    request = PrecisionRequest("int8", pictures, method=method, samples=10, seed=4)
    # Only the mechanics are of interest here, not whether ten pictures are enough.
    made = [add_precision(as_random(sac_graph, tmp_path / f"{i}"), request) for i in range(2)]
    assert made[0].manifest == made[1].manifest
    assert made[0].manifest.precisions["int8"].method == method
    assert made[0].manifest.precisions["int8"].pictures == 10


def test_a_precision_is_replaced(precise, tmp_path):
    copy = copy_of(precise, tmp_path / "bundle")
    role = copy.manifest.graphs[0].role
    again = add_precision(copy, PrecisionRequest("fp16", keep=(f"{role}:blocks.0.mlp.fc1",)))
    assert len(again.manifest.graphs) == len(copy.manifest.graphs)
    assert again.manifest.precisions["fp16"].kept_in_fp32[role]
    assert again.manifest.precisions["int8"] == copy.manifest.precisions["int8"]
    assert Bundle.open(copy.path).manifest == again.manifest
    file = copy.graph(role, "fp16").file
    assert again.manifest.files[file] != copy.manifest.files[file]


def with_engines(bundle: Bundle, *precisions: Precision) -> Bundle:
    """Not real ones, each with its log."""
    entries = tuple(
        dataclasses.replace(
            ENGINE,
            role=bundle.manifest.graphs[0].role,
            precision=precision,
            file=f"engines/{precision}.engine",
            precision_share={},
        )
        for precision in precisions
    )
    with staging_folder(bundle) as staging:
        (staging / "engines").mkdir()
        for entry in entries:
            (staging / entry.file).write_bytes(b"plan")
            (staging / entry.file).with_suffix(".log").write_text("said")
        manifest = dataclasses.replace(bundle.manifest, engines=entries)
        return publish(bundle, staging, manifest)


def test_engines_of_replaced_graphs_go(precise, tmp_path):
    copy = with_engines(copy_of(precise, tmp_path / "bundle"), "fp32", "fp16", "int8")
    again = add_precision(copy, PrecisionRequest("fp16"))
    assert [engine.precision for engine in again.engines()] == ["fp32", "int8"]
    wanted = {f"{p}.{kind}" for p in ("fp32", "int8") for kind in ("engine", "log")}
    assert {file.name for file in (copy.path / "engines").iterdir()} == wanted
    described = {name for name in again.manifest.files if name.startswith("engines/")}
    assert described == {f"engines/{name}" for name in wanted}
    assert Bundle.open(copy.path).manifest == again.manifest


def test_graphs_that_were_replaced_meanwhile_get_no_precision(sac_host, tmp_path):
    copy = copy_of(sac_host, tmp_path / "bundle")

    def replace(_: float, step: str) -> None:
        if step.startswith("writing"):
            (copy.path / "ee.onnx").write_bytes(b"other")
            files = {**copy.manifest.files, "ee.onnx": FileRecord.of(copy.path / "ee.onnx")}
            update_manifest(copy, dataclasses.replace(copy.manifest, files=files))

    with pytest.raises(BundleIntegrityError, match=r"while it was converted: ee\.onnx\.\nExport"):
        add_precision(copy, PrecisionRequest("fp16"), replace)
    assert "fp16" not in Bundle.open(copy.path).manifest.precisions
    assert not list(copy.path.glob("*fp16*"))


def test_bad_requests_change_nothing(sac_host, pictures, tmp_path):
    copy = copy_of(sac_host, tmp_path / "bundle")
    before = sorted(copy.path.iterdir())
    with pytest.raises(ConfigError, match=r"blocks\.77"):
        add_precision(copy, PrecisionRequest("fp16", keep=("blocks.77.mlp.fc1",)))
    with pytest.raises(DataError, match="does not exist"):
        add_precision(copy, PrecisionRequest("int8", tmp_path / "no data"))
    assert sorted(copy.path.iterdir()) == before
    assert Bundle.open(copy.path).manifest == sac_host.manifest


def test_a_full_disk_leaves_the_bundle_as_it_was(sac_host, tmp_path, monkeypatch):
    # The package has a function of the module's name.
    module = importlib.import_module("sacvit_deploy.exporters.precision.add_precision")

    def full(graphs, folder, weights_file):
        (folder / weights_file).write_bytes(b"part")
        raise OSError(28, "No space left on device")

    copy = copy_of(sac_host, tmp_path / "bundle")
    monkeypatch.setattr(module, "save_with_shared_weights", full)
    with pytest.raises(BundleError, match="No space left"):
        add_precision(copy, PrecisionRequest("fp16"))
    assert Bundle.open(copy.path).manifest == sac_host.manifest
    assert {f.name for f in copy.path.iterdir()} == {f.name for f in sac_host.path.iterdir()}
