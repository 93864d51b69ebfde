"""The description of a bundle: what is read is what was written, and mistakes are named."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from sacvit_deploy.bundle import Bundle, demo_bundle
from sacvit_deploy.commands.describe import describe_bundle, describe_export
from sacvit_deploy.decode import encode
from sacvit_deploy.errors import (
    BundleError,
    BundleIntegrityError,
    BundleVersionError,
    ConfigError,
    SacvitDeployError,
)
from sacvit_deploy.files import FileRecord
from sacvit_deploy.manifest import FORMAT_VERSION, MANIFEST, Manifest
from sacvit_deploy.records import (
    Agreement,
    EngineFlags,
    PrecisionRecord,
    TensorParity,
    WeightsOrigin,
)
from sacvit_deploy.runtime.preprocess import Preprocessor
from tests.exit_records import RECORDS, exit_record, in_two_precisions
from tests.fakes import CF, DENSE, ENGINE, SAC, fake_manifest

POINTS = [dataclasses.asdict(point) for point in exit_record().curve]
PRECISION = PrecisionRecord(
    data="pictures",
    data_sha256="ab" * 32,
    pictures=9,
    seed=0,
    kept_in_fp32={"early_exit": ("head",), "refine": ()},
    agreement=Agreement(9, 0.0, 1.0, 1.0, 0.125),
    eta=0.5,
    weight_shares={"early_exit": {"half": 1.0}},
    linear_weight_shares={"early_exit": {"half": 1.0}},
    tools={"onnx": "1.2"},
)
FULL = dataclasses.replace(
    in_two_precisions(),
    parity=(TensorParity("refine", "logits", 1, 1e-6, 1e-5),),
    precisions={"fp16": PRECISION},
    tools={"onnx": "1.2"},
    files={"a/b.bin": FileRecord("00", 3)},
    labels=("Käfer", *fake_manifest().labels[1:]),
    engines=(
        dataclasses.replace(
            ENGINE, flags=EngineFlags(workspace_mib=64), linear_share={"half": 1.0}
        ),
    ),
    exit_calibrations=RECORDS,
)


def values(manifest: Manifest = FULL) -> dict[str, Any]:
    """What a description says, to be changed; of version 1, which has no digest."""
    found: dict[str, Any] = json.loads(manifest.to_json())
    del found["digest"]
    return {**found, "format_version": 1}


def read(changed: dict[str, Any]) -> Manifest:
    return Manifest.from_json(json.dumps(changed))


@pytest.mark.parametrize(
    "manifest",
    [FULL, *map(fake_manifest, (SAC, CF, DENSE))],
    ids=["full", "sac_vit", "cf_vit", "vit"],
)
def test_json_is_symmetrical(manifest):
    text = manifest.to_json()
    assert Manifest.from_json(text) == manifest
    assert Manifest.from_json(text).to_json() == text
    assert '\n  "format": "sacvit-deploy bundle",\n  "format_version": 2,\n  "digest": "' in text


def test_labels_are_written_as_they_are():
    assert "Käfer" in FULL.to_json()


def test_a_bundle_of_an_older_release_says_the_same():
    """This one, once the demo's, is older than INT8, windows, the bodies of LV-ViT, and padding."""
    file = Path(__file__).parent / "golden" / "older_bundle.json"
    text = file.read_text(encoding="utf-8")
    written = json.loads(Manifest.from_json(text).to_json())
    for graph in written["graphs"]:
        assert graph.pop("engine_file") is None
    config = written["config"]
    assert config["two_stage"].pop("window") is None
    body = [config.pop(name) for name in ("stem", "qkv_bias", "residual_scale", "aux_weight")]
    assert body == ["patch", True, 1.0, 0.0]
    assert written["preprocessing"].pop("fit") == "crop"
    written["digest"] = json.loads(text)["digest"]
    assert json.dumps(written, indent=2, ensure_ascii=False) + "\n" == text


def test_version_1_has_no_digest_and_means_the_same():
    demo = Manifest.from_json((demo_bundle() / MANIFEST).read_bytes())
    assert read(values(demo)) == demo
    assert read({**values(demo), "digest": "of no meaning here"}) == demo


def test_the_digest_is_that_of_the_text_with_zeros_in_its_place():
    text = FULL.to_json()
    digest = json.loads(text)["digest"]
    assert digest == hashlib.sha256(text.replace(digest, "0" * 64).encode()).hexdigest()


@pytest.mark.parametrize("digest", [None, "", "0" * 64, 3, [], "A" * 64])
def test_a_missing_or_wrong_digest_is_refused(digest):
    changed = {**values(), "format_version": 2} | ({} if digest is None else {"digest": digest})
    with pytest.raises(
        BundleIntegrityError, match=r"digest is missing or differs.*\nCopy the whole"
    ):
        read(changed)


def assert_refused(text: bytes) -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(text)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_noticed(step):
    """A prime step meets all eight bits of a byte and all kinds of places."""
    text = bytearray((demo_bundle() / MANIFEST).read_bytes())
    for bit in range(0, 8 * len(text), step):
        text[bit // 8] ^= 1 << bit % 8
        assert_refused(bytes(text))
        text[bit // 8] ^= 1 << bit % 8


HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 10**20 - 1, 10**400, 1e-308, -1e308, float("nan"), float("inf"), "",
    "x" * 5000, "\ud800", "\0", "../x", [], [[]] * 300, {}, {"y" * 5000: [None]}, "refine",
)  # fmt: skip


def places(found: Any) -> list[tuple[Any, Any]]:
    """Every value inside a document, as its container and key."""
    keys = found.keys() if isinstance(found, dict) else range(len(found))
    own = [(found, key) for key in keys]
    inner = [found[key] for key in keys if isinstance(found[key], dict | list)]
    return own + [place for value in inner for place in places(value)]


def outcome(changed: dict[str, Any]) -> str | None:
    """The refusal of a description; None where it is read, and can be written and shown."""
    said = refusal(changed)
    assert said is None or len(said) < 2000
    return said


def refusal(changed: dict[str, Any]) -> str | None:
    try:
        manifest = read(changed)
    except SacvitDeployError as error:
        return str(error)
    assert Manifest.from_json(manifest.to_json()) == manifest
    bundle = Bundle(demo_bundle().parent / "none", manifest)
    assert "\n".join(describe_bundle(bundle)).encode()
    assert len(list(describe_export(bundle))) >= 2
    assert Preprocessor(manifest.preprocessing).crop_box(640, 480)
    return None


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))]
)
def test_hostile_values_are_refused_or_harmless(seed):
    """At every place, and then at several places at once, with keys removed and added."""
    generator, whole = random.Random(seed), values()
    for container, key in places(whole):
        kept, container[key] = container[key], copy.deepcopy(generator.choice(HOSTILE))
        outcome(whole)
        container[key] = kept
    for _ in range(100):
        changed = copy.deepcopy(whole)
        for _ in range(generator.randint(1, 3)):
            container, key = generator.choice(places(changed))
            if isinstance(container, dict) and generator.random() < 0.5:
                del container[key]
                container["z" * 5000] = copy.deepcopy(generator.choice(HOSTILE))
            else:
                container[key] = copy.deepcopy(generator.choice(HOSTILE))
        outcome(changed)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("preprocessing.crop_ratio", 1e-308),
        ("preprocessing.mean", [0, 0, 1e300]),
        ("preprocessing.std", [1e-300, 1, 1]),
        ("preprocessing.crop", [24, 1 << 17]),
        ("config.image_size", [1 << 20, 1 << 20]),
        ("config.depth", 10**4 + 1),
        ("config.num_classes", 10**9),
        ("config.embed_dim", 1 << 40),
        ("config.mlp_ratio", 1e300),
        ("config.layer_norm_eps", -1.0),
        ("eta", 10**400),
        ("exit_calibrations.0.temperature", 1e-300),
        ("engines.0.batch", [1, 1, 10**18]),
    ],
)
def test_numbers_out_of_all_reason_are_refused(path, value):
    container: Any
    changed = values()
    container, keys = changed, path.split(".")
    for key in keys[:-1]:
        container = container[int(key) if key.isdigit() else key]
    container[keys[-1]] = value
    said = outcome(changed)
    assert said is not None
    assert keys[-1].split("_")[0] in said or "digits" in said


def test_long_names_make_no_long_messages():
    for changed in (
        {"format_version": "x" * 5_000_000},
        {"config": {**encode(SAC), "x" * 5_000_000: 3}},
        {"config": {**encode(SAC), "family": "x" * 5_000_000}},
        {"files": {"../" + "x" * 5_000_000: {"sha256": "00", "bytes": 1}}},
        {"graphs": values()["graphs"] * 1000},
    ):
        assert outcome({**values(), **changed}) is not None


def test_names_that_no_file_has_are_refused():
    with pytest.raises(BundleError, match="too long"):
        read({**values(), "files": {"x" * 256: {"sha256": "00", "bytes": 1}}})


@pytest.mark.parametrize("name", ["engines", "precisions", "exit_calibrations", "parity", "tools"])
def test_what_older_releases_did_not_write_is_empty(name):
    changed = values()
    del changed[name]
    empty = getattr(fake_manifest(), name)
    assert not empty
    assert read(changed) == dataclasses.replace(FULL, **{name: empty})


def test_what_older_releases_did_not_write_of_a_part_has_its_default():
    changed = values()
    for graph in changed["graphs"]:
        del graph["engine_file"]
    del changed["engines"][0]["layer_share"]
    del changed["config"]["two_stage"]["score_start"]
    assert read(changed) == FULL


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (WeightsOrigin("random", seed=3), "origin random, seed 3"),
        (
            WeightsOrigin("checkpoint", file="a.pth", sha256="00", storage="fp16"),
            "origin checkpoint, file a.pth, sha256 00, storage fp16",
        ),
    ],
)
def test_of_the_weights_only_what_is_known_is_written(weights, said):
    assert str(weights) == said
    written = values(dataclasses.replace(FULL, weights=weights))["weights"]
    assert ", ".join(f"{name} {value}" for name, value in written.items()) == said
    assert weights.is_random is ("random" in said)


def test_of_a_precision_only_int8_has_a_method():
    int8 = dataclasses.replace(PRECISION, method="minmax", smoothing={"blocks.0.norm1": 0.5})
    assert list(encode(int8)) == ["method", "smoothing", *encode(PRECISION)]
    for record in (PRECISION, int8, dataclasses.replace(int8, smoothing=0.5)):
        manifest = dataclasses.replace(FULL, precisions={"fp16": record})
        assert Manifest.from_json(manifest.to_json()) == manifest


def test_only_flags_that_were_set_are_written():
    assert values()["engines"][0]["flags"] == {"workspace_mib": 64}
    changed = values()
    changed["engines"][0]["flags"] = {"version_compatible": True}
    assert read(changed).engines[0].flags == EngineFlags(version_compatible=True)


def test_unknown_keys_are_ignored():
    changed = values() | {"mood": "fair"}
    changed["engines"][0]["mood"] = changed["files"]["a/b.bin"]["mood"] = "fair"
    assert read(changed) == FULL


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff\xfe", "[]", "3"])
def test_what_is_not_json_is_refused(text):
    with pytest.raises(BundleError, match=r"JSON|not the description"):
        Manifest.from_json(text.encode("latin-1"))


def test_a_newer_version_is_refused_before_anything_else():
    newer = {"format_version": FORMAT_VERSION + 1, "config": "of a shape nobody knows yet"}
    with pytest.raises(BundleVersionError, match="version 3; this release reads up to 2"):
        read(values() | newer)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"format": "other"}, "not the description"),
        ({"format_version": "1"}, "format_version is '1'"),
        ({"format_version": True}, "format_version is True"),
        ({"config": None}, "config is missing"),
        ({"config": {"family": "sac_vit"}}, "config.image_size is missing"),
        ({"config": 3}, "config is 3"),
        ({"config": {**encode(SAC), "depht": 3}}, "Unknown field: config.depht"),
        ({"preprocessing": {"crop": [24, 32], "zoom": 2}}, "Unknown field: preprocessing.zoom"),
        ({"preprocessing": {"crop": [32, 32]}}, "cropped to"),
        ({"selection": "guess"}, "selection is 'guess'.\nMake it one of 'host', 'graph'"),
        ({"input_kind": 8}, "input_kind is 8"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"eta": float("nan")}, "NaN is not a number"),
        ({"eta": "0.5"}, "eta is '0.5'"),
        ({"eta": True}, "eta is True"),
        ({"eta": None}, "eta is missing"),
        ({"labels": ["one"]}, "1 labels for 7 classes"),
        ({"labels": "seven"}, "labels is 'seven'.\nMake it a list"),
        ({"labels": [1, 2, 3, 4, 5, 6, 7]}, r"labels\[0\] is 1"),
        ({"graphs": []}, "The graphs are none"),
        ({"graphs": [{"role": "refine"}]}, r"graphs\[0\]\.precision is missing"),
        ({"weights": []}, r"weights is \[\].\nMake it a mapping"),
        ({"tools": {"onnx": 1}}, r"tools\['onnx'\] is 1"),
        ({"files": {"ee.onnx": {"sha256": "00"}}}, r"files\['ee.onnx'\].bytes is missing"),
    ],
)
def test_a_wrong_description_is_refused(changed, says):
    found = {k: v for k, v in (values() | changed).items() if v is not None}
    with pytest.raises(BundleError, match=says):
        read(found)


def test_the_place_of_a_mistake_is_named():
    changed = values()
    changed["graphs"][1]["inputs"][0]["shape"][2] = 1.5
    with pytest.raises(BundleError) as refused:
        read(changed)
    assert refused.value.problem == "graphs[1].inputs[0].shape[2] is 1.5."
    assert refused.value.fix == "Make it a whole number or a string. Or export the bundle again."


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", "\\x", "C:x", "", "a\0b"]
)
def test_a_file_name_never_leads_out(name):
    changed = values()
    changed["files"][name] = {"sha256": "00", "bytes": 1}
    with pytest.raises(BundleError, match="leads out of the bundle folder"):
        read(changed)


@pytest.mark.parametrize("eta", [-0.01, 1.01, float("nan")])
def test_eta_is_checked_when_a_manifest_is_made(eta):
    with pytest.raises(ConfigError, match="eta"):
        fake_manifest(eta=eta)


@pytest.mark.parametrize(("role", "kind"), [("early_exit", "outputs"), ("refine", "inputs")])
def test_tensors_must_be_those_of_the_network(role, kind):
    manifest = fake_manifest()
    graphs = tuple(
        dataclasses.replace(graph, **{kind: getattr(graph, kind)[1:]})
        if graph.role == role
        else graph
        for graph in manifest.graphs
    )
    with pytest.raises(BundleIntegrityError, match=f"inputs and outputs of its {role} graph"):
        dataclasses.replace(manifest, graphs=graphs)


def test_roles_must_fit_the_family():
    manifest = fake_manifest()
    for graphs in (manifest.graphs[:1], manifest.graphs * 2, fake_manifest(DENSE).graphs):
        with pytest.raises(BundleIntegrityError, match="needs early_exit and refine"):
            dataclasses.replace(manifest, graphs=graphs)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"runtime": "openvino"}, "runtime is 'openvino'"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"batch": [8, 1, 32]}, "batch range"),
        ({"batch": [1, 8]}, r"batch is \[1, 8\].\nMake it a list of 3"),
        ({"batch": [0, 8, 32]}, "batch range"),
        ({"build_s": "soon"}, "build_s is 'soon'"),
        ({"flags": None}, "flags is None"),
        ({"compute_capabilities": [87]}, "compute_capabilities"),
        ({"file": "../ee.engine"}, "leads out of the bundle"),
        ({"role": "single"}, "The engines are"),
    ],
)
def test_a_wrong_engine_is_refused(change, says):
    changed = values()
    changed["engines"][0].update(change)
    with pytest.raises(BundleError, match=says):
        read(changed)


def test_a_calibration_is_found_by_precision_and_backend():
    assert FULL.exit_calibration("fp16", "onnxruntime") == RECORDS[1]
    assert FULL.exit_calibration("fp16", "tensorrt") == RECORDS[2]
    assert FULL.exit_calibration("int8", "onnxruntime") is None
    assert FULL.exit_calibration("fp32", "tensorrt") is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"eta": 1.5}, "eta is 1.5"),
        ({"eta": None}, r"exit_calibrations\[0\].eta is None"),
        ({"temperature": 0}, "temperature is 0"),
        ({"top1": float("nan")}, "NaN is not a number"),
        ({"precision": "fp8"}, "precision is 'fp8'.\nMake it one of 'fp32'"),
        ({"runtime": "torch"}, "runtime is 'torch'.\nMake it one of 'onnxruntime'"),
        ({"images": "many"}, "images is 'many'.\nMake it a whole number"),
        ({"top1_interval": [0.5]}, r"top1_interval is \[0.5\].\nMake it a list of 2"),
        ({"top1_interval": [0.6, 0.5]}, "top-1 interval"),
        ({"confidence_histogram": [1.0]}, "has 1 bins"),
        ({"confidence_histogram": [0.1] * 20}, "add up to 2"),
        ({"confidence_histogram": [-1.0, 2.0] + [0.0] * 18}, "confidence histogram"),
        ({"curve": [{"eta": 0.5}]}, r"curve\[0\].top1 is missing"),
        ({"curve": 5}, "curve is 5.\nMake it a list"),
        ({"curve": POINTS[::-1]}, "not sorted by eta"),
        ({"curve": [POINTS[0] | {"eta": -0.1}]}, "eta is -0.1"),
        ({"images": 0}, "of 0 pictures"),
        ({"top1": 80.0}, "8000.0% are correct"),
        ({"early_exit_fraction": -0.5}, "-50.0% exit early"),
    ],
)
def test_a_wrong_calibration_is_refused(change, says):
    changed = values()
    changed["exit_calibrations"][0] |= change
    with pytest.raises(BundleError, match=says):
        read(changed)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf"), True])
def test_a_temperature_is_a_finite_number_above_0(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        exit_record(temperature=temperature)


def test_calibrations_fit_the_graphs():
    for manifest, records in (
        (fake_manifest(), RECORDS),
        (fake_manifest(), RECORDS[:1] * 2),
        (fake_manifest(DENSE), RECORDS[:1]),
    ):
        with pytest.raises(BundleIntegrityError, match="exit calibrations"):
            dataclasses.replace(manifest, exit_calibrations=records)


def test_a_new_calibration_takes_the_place_of_the_old():
    newer = exit_record("fp16", eta=0.25)
    manifest = FULL.with_calibration(newer)
    assert set(manifest.exit_calibrations) == {RECORDS[0], RECORDS[2], RECORDS[3], newer}
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_threshold_of_fp32_in_onnxruntime_is_that_of_the_bundle():
    manifest = in_two_precisions()
    assert manifest.with_calibration(exit_record(eta=0.75)).eta == 0.75
    assert manifest.with_calibration(exit_record("fp16", eta=0.75)).eta == manifest.eta
    assert manifest.with_calibration(exit_record("fp32", "tensorrt")).eta == manifest.eta
    assert manifest.with_calibration(exit_record(temperature=2.0)).eta == manifest.eta


def test_a_file_is_recorded_as_it_is(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    found = FileRecord.of(tmp_path / "abc")
    assert found.bytes == 3
    assert found.sha256.startswith(
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
