from __future__ import annotations

import dataclasses
import importlib
import json
import math
import shutil

import onnx
import pytest
from onnx import numpy_helper

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.bundle_changes import update_manifest
from sacvit_deploy.comparison import verify as verify_module
from sacvit_deploy.comparison.decisions import LIMITS, Limits
from sacvit_deploy.comparison.network import of_bundle, of_torch, reference_for
from sacvit_deploy.comparison.verify import Verification, VerifyRequest, verify
from sacvit_deploy.errors import ConfigError, ImageError, MissingDependencyError
from sacvit_deploy.exporters.precision import PrecisionRequest, add_precision
from sacvit_deploy.files import FileRecord
from sacvit_deploy.model.checkpoints import save_checkpoint
from sacvit_deploy.records import Agreement, TensorParity, WeightsOrigin
from tests.engines.engine_bundles import Workplace
from tests.fakes import SAC as FAKE
from tests.fakes import random_pictures
from tests.tiny_models import SAC

PICTURES = random_pictures(20)


def verified(bundle, against=None, pictures=PICTURES, precision=None, **request) -> Verification:
    candidate = of_bundle(bundle, precision)
    reference = reference_for(bundle, None if against is None else str(against), candidate)
    return verify(reference, candidate, VerifyRequest(pictures, **request))


@pytest.fixture(scope="module")
def sac_fp16(sac_host, tmp_path_factory) -> Bundle:
    path = tmp_path_factory.mktemp("fp16") / "bundle"
    shutil.copytree(sac_host.path, path)
    return add_precision(Bundle.open(path), PrecisionRequest("fp16"))


def with_weight(bundle: Bundle, file: str, name: str, by: float) -> Bundle:
    """The bundle with one wrong number in one constant of one graph."""
    path = bundle.path / file
    graph = onnx.load(path)
    (tensor,) = (t for t in graph.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += by
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(graph, path)
    files = {**bundle.manifest.files, file: FileRecord.of(path)}
    return update_manifest(bundle, dataclasses.replace(bundle.manifest, files=files))


def damaged(bundle: Bundle, path, file: str, name: str, by: float = 5.0) -> Bundle:
    shutil.copytree(bundle.path, path)
    return with_weight(Bundle.open(path), file, name, by)


@pytest.mark.parametrize("name", ["sac_host", "sac_graph"])
def test_a_bundle_agrees_with_its_checkpoint(name, sac_checkpoint, request):
    found = verified(request.getfixturevalue(name), sac_checkpoint)
    assert found.passed
    assert found.missed == ()
    assert [record.role for record in found.graphs] == ["early_exit", "refine"]
    assert all(found.limits.excess(record) < 0.5 for record in found.graphs)
    assert found.agreement is not None
    assert found.agreement.images == len(PICTURES)
    assert found.agreement.target_overlap == 1
    assert found.agreement.max_probability_error < 1e-4
    assert found.reference == f"{sac_checkpoint} (torch)"


@pytest.mark.parametrize(("one", "other"), [("sac_host", "sac_graph"), ("sac_graph", "sac_host")])
def test_bundles_of_one_network_agree_whoever_selects_and_normalises(one, other, request):
    bundle, trusted = request.getfixturevalue(one), request.getfixturevalue(other)
    found = verified(bundle, trusted.path, layers=True)
    assert found.passed
    assert found.layers
    assert max(layer.error for layer in found.layers) < 1e-4
    assert found.first_diverging is None


def test_the_document_is_that_of_the_contract(sac_host, sac_checkpoint):
    document = verified(sac_host, sac_checkpoint, PICTURES[:2]).to_dict()
    values = json.loads(json.dumps(document))
    keys = {"graphs", "exit_flip_rate", "target_overlap", "label_agreement", "passed"}
    assert keys | {"reference", "candidate", "limits", "missed"} <= set(values)
    assert {"role", "max_abs_error"} <= set(values["graphs"][0])
    assert values["passed"] is True
    assert values["limits"]["max_exit_flip_rate"] == Limits().max_exit_flip_rate
    assert "layers" not in values


def test_random_weights_are_made_again_from_their_seed(dense_bundle):
    found = verified(dense_bundle)
    assert found.passed
    assert found.agreement is not None
    assert found.agreement.label_agreement == 1
    weights = WeightsOrigin("random", seed=6)
    manifest = dataclasses.replace(dense_bundle.manifest, weights=weights)
    assert not verified(dataclasses.replace(dense_bundle, manifest=manifest), "torch").passed


def test_other_weights_do_not_pass_and_the_layer_is_named(sac_host, sac_model, tmp_path):
    path = tmp_path / "later.safetensors"
    state = {name: value.clone() for name, value in sac_model.state_dict().items()}
    # One channel only: LayerNorm takes out what all have in common.
    state["fusion.mlp.fc2.bias"][0] += 1
    save_checkpoint(path, state, SAC)
    found = verified(sac_host, path, layers=True)
    assert not found.passed
    early, refine = found.graphs
    assert found.limits.excess(early) < 1 < found.limits.excess(refine)
    first = found.first_diverging
    assert first is not None
    assert (first.role, first.place, first.kind) == ("refine", "fusion.mlp.fc2", "product")
    assert first.tensor in {out for node in graph_nodes(sac_host, "refine") for out in node.output}
    assert first.node in {node.name for node in graph_nodes(sac_host, "refine")}
    assert any("refine" in missed.where for missed in found.missed)
    assert found.to_dict()["first_diverging"]["place"] == "fusion.mlp.fc2"


def graph_nodes(bundle: Bundle, role):
    return onnx.load(bundle.graph_path(bundle.graph(role))).graph.node


@pytest.mark.parametrize(
    "weight", ["blocks.1.mlp.fc1.weight", "blocks.0.attn.qkv.weight", "patch_embed.proj.weight"]
)
def test_the_first_layer_is_that_of_the_wrong_weight(sac_host, sac_model, tmp_path, weight):
    state = {name: value.clone() for name, value in sac_model.state_dict().items()}
    state[weight].view(-1)[0] += 3
    save_checkpoint(tmp_path / "other.safetensors", state, SAC)
    found = verified(sac_host, tmp_path / "other.safetensors", PICTURES[:2], layers=True)
    first = found.first_diverging
    assert first is not None
    wanted = weight.removesuffix(".weight").replace("patch_embed.proj", "input")
    assert (first.role, first.place, first.kind) == ("early_exit", wanted, "product")


def test_every_layer_of_torch_is_compared(sac_host, sac_checkpoint):
    found = verified(sac_host, sac_checkpoint, PICTURES[:1], layers=True)
    assert found.layers is not None
    places = [layer.place for layer in found.layers if layer.kind == "product"]
    blocks = [f"blocks.{i}.{name}" for i in range(SAC.depth) for name in LINEAR]
    fusion = ["fusion.mlp.fc1", "fusion.mlp.fc2"]
    assert places == ["input", *blocks, "head", "input", *fusion, *blocks, "head"]
    sums = [layer for layer in found.layers if layer.kind == "sum"]
    assert len(sums) == 2 * (2 * SAC.depth + 1) + 1  # before every norm, and before the fusion
    assert 0 < max(layer.error for layer in found.layers) < 1e-4


LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def test_fp16_is_held_against_fp32_by_the_limits_of_fp16(sac_fp16):
    found = verified(sac_fp16, precision="fp16", layers=True)
    assert found.candidate == f"{sac_fp16.path} (fp16 in onnxruntime)"
    assert found.reference == f"{sac_fp16.path} (fp32 in onnxruntime)"
    assert found.passed
    limits = found.limits
    assert limits.min_target_overlap == LIMITS["fp16"].min_target_overlap
    assert limits.max_exit_flip_rate == 1 / len(PICTURES)
    # Really rounded: more than FP32 would be off.
    assert found.layers
    assert 1e-5 < max(layer.error for layer in found.layers) < 0.02
    step = found.worst_step
    assert step in found.layers


def test_a_lower_precision_against_torch(sac_fp16, sac_checkpoint):
    found = verified(sac_fp16, sac_checkpoint, precision="fp16", layers=True)
    assert found.passed
    assert found.layers
    assert max(layer.error for layer in found.layers) > 1e-5


def test_limits_can_be_set(sac_fp16):
    found = verified(sac_fp16, precision="fp16", limits={"max_tensor_error": 1e-6})
    assert [missed.limit for missed in found.missed] == ["max_tensor_error"] * 2
    assert all(missed.found > missed.allowed == 1e-6 for missed in found.missed)
    found = verified(sac_fp16, precision="fp16", limits={"max_probability_error": 0.0})
    assert {missed.limit for missed in found.missed} == {"max_probability_error"}


def test_a_graph_that_is_not_finite_fails_with_its_layer(sac_host, tmp_path):
    """Decisions cannot be compared then, and the document says null."""
    names = {t.name for t in onnx.load(sac_host.path / "sac.onnx").graph.initializer}
    (name,) = (name for name in names if name.endswith("blocks.1.mlp.fc1.bias"))
    bundle = damaged(sac_host, tmp_path / "bundle", "sac.onnx", name, math.inf)
    found = verified(bundle, sac_host.path, PICTURES[:2], layers=True)
    assert not found.passed
    assert found.agreement is None
    first = found.first_diverging
    assert first is not None
    assert (first.role, first.error) == ("refine", math.inf)
    assert found.worst_step == first
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["first_diverging"]["error"] is None
    shares = ("exit_flip_rate", "target_overlap", "label_agreement")
    assert [json.loads(text)[share] for share in shares] == [None] * 3


def test_a_graph_within_tolerance_that_decides_differently_does_not_pass(
    sac_host, sac_checkpoint, monkeypatch
):
    real = vars(verify_module)["compare_decisions"]

    def flipped(*arguments):
        return dataclasses.replace(real(*arguments), exit_flip_rate=0.5)

    monkeypatch.setattr(verify_module, "compare_decisions", flipped)
    found = verified(sac_host, sac_checkpoint, PICTURES[:2])
    (missed,) = found.missed
    assert (missed.limit, missed.found, missed.allowed) == ("max_exit_flip_rate", 0.5, 0.005)
    assert all(found.limits.excess(record) < 1 for record in found.graphs)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_threshold_can_be_chosen(sac_host, sac_checkpoint, monkeypatch, eta):
    seen = []
    real = vars(verify_module)["compare_decisions"]

    def watched(wanted, found, config, threshold, temperature):
        seen.append((threshold, temperature))
        return real(wanted, found, config, threshold, temperature)

    monkeypatch.setattr(verify_module, "compare_decisions", watched)
    assert verified(sac_host, sac_checkpoint, PICTURES[:2], eta=eta).passed
    assert seen == [(eta, 1.0)]


def test_a_bad_picture_is_refused(sac_host, sac_checkpoint, tmp_path):
    (tmp_path / "cat.jpg").write_text("no")
    with pytest.raises(ImageError, match=r"cat\.jpg"):
        verified(sac_host, sac_checkpoint, [*PICTURES[:9], tmp_path / "cat.jpg"])


def test_torch_is_a_reference_and_no_candidate(dense_bundle):
    with pytest.raises(ConfigError, match=r"random weights \(torch\) was to be verified"):
        verify(of_bundle(dense_bundle), of_torch(dense_bundle), VerifyRequest(PICTURES[:1]))


def test_no_picture_is_refused():
    with pytest.raises(ConfigError, match="no picture"):
        VerifyRequest([])


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1])
def test_a_limit_out_of_range_is_refused(value):
    """Everything would hold against NaN."""
    with pytest.raises(ConfigError, match="max_tensor_error is"):
        VerifyRequest(PICTURES, limits={"max_tensor_error": value})


@pytest.mark.parametrize(
    ("library", "call"),
    [
        ("torch", lambda bundle: of_torch(bundle)),
        ("onnx", lambda bundle: verified(bundle, "torch", PICTURES[:1], layers=True)),
    ],
)
def test_without_a_library_it_says_what_to_install(dense_bundle, monkeypatch, library, call):
    real = importlib.import_module

    def absent(name):
        if name == library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingDependencyError, match=r"sacvit-deploy\[export\]"):
        call(dense_bundle)


class TestEngines:
    """On the fakes of TensorRT, which compute as `FakeSession` does."""

    @pytest.fixture
    def workplace(self, tmp_path, monkeypatch) -> Workplace:
        return Workplace.make(tmp_path, monkeypatch, FAKE)

    @pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
    def test_engines_are_compared_within_their_largest_batch(self, workplace, runtime):
        bundle = workplace.bundle(runtime, batch=(1, 2, 4))
        candidate = of_bundle(bundle, None, runtime)
        assert (candidate.precision, candidate.largest_batch) == ("fp32", 4)
        found = verify(candidate, candidate, VerifyRequest(PICTURES[:6]))
        assert found.passed
        assert max(record.batch for record in found.graphs) <= 4
        assert found.agreement is not None
        assert found.agreement.images == 6

    def test_two_runtimes_of_two_bundles(self, workplace):
        one, other = workplace.bundle("tensorrt"), workplace.bundle("tensorrt-rtx")
        candidate = of_bundle(one, "fp32", "tensorrt")
        reference = reference_for(one, f"{other.path}:fp32@tensorrt-rtx", candidate)
        found = verify(reference, candidate, VerifyRequest(PICTURES[:3]))
        assert found.passed
        assert "tensorrt-rtx" in found.reference

    def test_an_engine_cannot_be_looked_into(self, workplace):
        bundle = workplace.bundle()
        candidate = of_bundle(bundle, "fp32", "tensorrt")
        with pytest.raises(ConfigError, match="fused"):
            verify(candidate, candidate, VerifyRequest(PICTURES[:1], layers=True))


def test_a_verification_passes_where_nothing_is_missed():
    agreement = Agreement(4, 0.25, 1.0, 1.0, 0.0)
    record = TensorParity("single", "logits", 1, 0.0, 0.0)
    limits = Limits()
    missed = limits.missed(agreement, [record])
    found = Verification("a", "b", FAKE, (record,), agreement, limits, missed)
    assert not found.passed
    assert found.to_dict()["missed"][0]["limit"] == "max_exit_flip_rate"
    assert dataclasses.replace(found, missed=()).passed
