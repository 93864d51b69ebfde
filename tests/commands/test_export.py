from __future__ import annotations

import json
import sys
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.commands.export import parse_overrides
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.exporters import export
from sacvit_deploy.families.svit import GateConfig
from sacvit_deploy.model.checkpoints import save_checkpoint
from sacvit_deploy.records import WeightsOrigin
from tests.tiny_models import DENSE, SAC, strong_model

TINY = ["--set", "depth=1", "--set", "embed_dim=24", "--set", "num_classes=3"]


@pytest.fixture
def nothing_exported(monkeypatch) -> None:
    monkeypatch.setattr(export, "onnx_from_torch", lambda *_, **__: pytest.fail("was exported"))


def test_random_weights_of_a_preset_with_other_fields(invoke, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\nemu\n")
    path = tmp_path / "bundle"
    ran = invoke(
        *("export", "-o", path, "--preset", "demo_patch8_64", "--random-weights", "--seed", 4),
        *(*TINY, "--labels", labels, "--eta", 0.25, "--input", "uint8", "--json"),
    )
    assert ran.code == 0, ran
    assert json.loads(ran.out).keys() == {"bundle", "parity", "precisions"}
    assert ran.err == ""
    manifest = Bundle.open(path).manifest
    assert manifest.weights == WeightsOrigin("random", seed=4, storage="fp32")
    assert manifest.labels == ("cat", "dog", "emu")
    assert (manifest.eta, manifest.input_kind) == (0.25, "uint8")
    assert (manifest.config.depth, manifest.config.embed_dim) == (1, 24)


GATED = ["--preset", "svit_demo_patch8_64", "--random-weights", *TINY, "--set", "first_block=0"]


def test_the_capacity_of_gates_is_given(invoke, tmp_path):
    path = tmp_path / "bundle"
    chosen = ["--gates", "capacity", "--capacity", "40", "--strict"]
    ran = invoke("export", "-o", path, *GATED, *chosen)
    assert ran.code == 0, ran
    manifest = Bundle.open(path).manifest
    assert manifest.config.gating == GateConfig(0, mode="capacity", capacity=(40,), strict=True)
    assert [graph.file for graph in manifest.graphs] == ["model.onnx", "masked.onnx"]


def test_or_found_on_pictures(invoke, table, tmp_path):
    path = tmp_path / "bundle"
    ran = invoke(
        *("export", "-o", path, *GATED, "--gates", "capacity", "--calibration-data", table)
    )
    assert ran.code == 0, ran
    # New gates keep everything.
    assert Bundle.open(path).manifest.config.gating.capacity == (65,)


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        (["--gates", "capacity"], "--calibration-data"),
        (["--gates", "capacity", "--capacity", "all"], "--capacity is 'all'"),
        (["--gates", "capacity", "--capacity", "66"], "capacity is (66,)"),
        (["--strict"], "strict is True"),
    ],
)
def test_capacities_that_cannot_be(refused, tmp_path, nothing_exported, chosen, says):
    assert says in refused("export", "-o", tmp_path / "bundle", *GATED, *chosen)


def test_a_checkpoint_says_what_it_became(invoke, tmp_path, sac_checkpoint, translated):
    path = tmp_path / "bundle"
    ran = invoke("export", sac_checkpoint, "-o", path)
    assert ran.code == 0, ran
    assert f"{path}: ee.onnx, sac.onnx\n" in ran.out
    assert "Parity with torch: worst " in ran.out
    assert Bundle.open(path).manifest.config == SAC


def test_an_existing_bundle_is_replaced_by_force_only(
    invoke, refused, tmp_path, sac_checkpoint, translated
):
    path = tmp_path / "bundle"
    assert invoke("export", sac_checkpoint, "-o", path).code == 0
    said = refused("export", sac_checkpoint, "-o", path, "--eta", 0.9)
    assert "exists" in said
    assert "--force" in said
    assert Bundle.open(path).manifest.eta == 0.5
    assert invoke("export", sac_checkpoint, "-o", path, "--eta", 0.9, "--force").code == 0
    assert Bundle.open(path).manifest.eta == 0.9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "CHECKPOINT or --random-weights"),
        (["model.pth", "--random-weights"], "CHECKPOINT or --random-weights"),
        (["--random-weights", "--preset", "sac_deit_huge"], "sac_deit_small_patch16_224"),
        (["--random-weights", "--selection", "guess"], "'guess' is not one of"),
        (["--random-weights", "--input", "int4"], "'int4' is not one of"),
        (["--random-weights", "--eta", "high"], "'high' is not a valid float"),
        (["--random-weights", "--magic"], "No such option"),
    ],
)
def test_wrong_usage(invoke, tmp_path, nothing_exported, arguments, says):
    ran = invoke("export", *arguments, "-o", tmp_path / "bundle")
    assert ran.code == 2
    assert says in ran.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--eta", 1.5], "eta is 1.5"),
        (["--eta", -0.1], "eta is -0.1"),
        (["--eta", "nan"], "eta is nan"),
        (["--alpha", 0], "alpha is 0"),
        (["--set", "depth"], "--set 'depth' has no value"),
        (["--set", "deep=3"], "has no field deep"),
        (["--set", "depth=three"], "depth is 'three'"),
        (["--set", "depth=3.5"], "depth is 3.5"),
        (["--set", "depth=true"], "depth is True"),
        (["--set", "mlp_ratio=wide"], "mlp_ratio is 'wide'"),
        (["--set", "layer_norm_eps=null"], "layer_norm_eps is None"),
        (["--set", "image_size=63"], "image_size is (63, 63)"),
        (["--set", "alpha=half"], "alpha is 'half'"),
        (["--set", "image_size=60x64"], "image_size is (60, 64)"),
        (["--set", "attention=global"], "attention is 'global'"),
        (["--opset", 12], "Operator set 12"),
        (["--labels", "none.txt"], "none.txt cannot be read"),
    ],
)
def test_values_that_cannot_be(refused, tmp_path, arguments, says):
    path = tmp_path / "bundle"
    base = ("export", "-o", path, "--random-weights", "--preset", "sac_demo_patch8_64")
    assert says in refused(*base, *arguments)
    assert not list(tmp_path.iterdir())


def test_random_weights_need_a_preset(refused, tmp_path, nothing_exported):
    assert "--preset" in refused("export", "-o", tmp_path / "bundle", "--random-weights")


def damaged_checkpoints(folder, sac_checkpoint) -> dict[str, str]:
    """File name to what must be said of it."""
    content = sac_checkpoint.read_bytes()
    tensors = load_file(sac_checkpoint)
    (folder / "truncated.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "header.safetensors").write_bytes(content[:100])
    (folder / "empty.safetensors").touch()
    (folder / "folder").mkdir()
    (folder / "text.pth").write_text("not weights")
    torch.save({"model": {"embedding.weight": torch.zeros(3)}}, folder / "other.pth")
    dense = strong_model(DENSE.replace(embed_dim=48))
    save_checkpoint(folder / "dense.safetensors", dense.state_dict(), dense.config)
    nan = {**tensors, "head.bias": torch.full((7,), float("nan"))}
    save_file(nan, folder / "nan.safetensors")
    short = {name: value for name, value in tensors.items() if name != "head.bias"}
    save_file(short, folder / "short.safetensors")
    return {
        "truncated.safetensors": "truncated.safetensors",
        "header.safetensors": "header.safetensors",
        "empty.safetensors": "is empty (0 bytes)",
        "folder": "is a folder",
        "text.pth": "not a checkpoint",
        "none.pth": "no file",
        "other.pth": "embedding.weight",
        "dense.safetensors": "head",
        "nan.safetensors": "head.bias",
        "short.safetensors": "head.bias",
    }


def test_checkpoints_that_cannot_be_used(refused, tmp_path, sac_checkpoint, nothing_exported):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    fields = {
        "patch_size": 4,
        "embed_dim": 24,
        "depth": 3,
        "mlp_ratio": 4.0,
        "num_classes": 7,
        "image_size": "32x48",
        "score_first_block": 1,
    }
    sets = [part for name, value in fields.items() for part in ("--set", f"{name}={value}")]
    for name, says in damaged_checkpoints(folder, sac_checkpoint).items():
        path = tmp_path / "bundle"
        said = refused("export", folder / name, "-o", path, "--preset", "sac_demo_patch8_64", *sets)
        assert says in said, name
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoints"]


def test_a_checkpoint_without_a_network_needs_a_preset(refused, tmp_path, golden_checkpoint):
    said = refused("export", golden_checkpoint, "-o", tmp_path / "bundle")
    assert "--preset" in said


@pytest.mark.parametrize("how", [["--precision", "fp16"], ["--precision", "fp32,fp16"]])
def test_a_precision_is_written_beside_fp32(how, invoke, sac_checkpoint, translated, tmp_path):
    path = tmp_path / "bundle"
    ran = invoke("export", sac_checkpoint, "-o", path, *how)
    assert ran.code == 0, ran
    assert f"{path}: ee.onnx, sac.onnx, ee.fp16.onnx, sac.fp16.onnx\n" in ran.out
    assert "fp16 against fp32 on 32 pictures: " in ran.out
    assert ran.err == ""
    assert Bundle.open(path).manifest.precisions.keys() == {"fp16"}


def test_few_pictures_are_called_few(invoke, table, tmp_path):
    arguments = ("--random-weights", "--preset", "demo_patch8_64", "--precision", "int8")
    ran = invoke("export", *arguments, "-o", tmp_path / "bundle", "--calibration-data", table)
    assert ran.code == 0, ran
    assert "4 pictures are few to calibrate INT8 on" in ran.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--precision", "int8"], "--calibration-data"),
        (["--precision", "bf16"], "fp16 or int8"),
        (["--precision", "fp16", "--keep-float", "nowhere"], "no graph of early_exit, refine"),
        (["--precision", "int8", "--calibration-data", "nowhere"], "does not exist"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(
    arguments, says, invoke, sac_checkpoint, translated, tmp_path
):
    ran = invoke("export", sac_checkpoint, "-o", tmp_path / "bundle", *arguments)
    assert ran.code == 1
    assert says in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("depth=3", 3),
        ("alpha=.4", 0.4),
        ("alpha=0.4", 0.4),
        ("layer_norm_eps=1e-5", 1e-5),
        ("image_size=224x320", (224, 320)),
        ("image_size=224", (224, 224)),
        ("image_size=[224, 320]", (224, 320)),
        ("attention=joint", "joint"),
        ("exit_comparison=>=", ">="),
        ("exit_comparison==", "="),
        ("name=axb", "axb"),
    ],
)
def test_values_are_read_as_what_they_look_like(text, value):
    name = text.partition("=")[0]
    assert parse_overrides([text]) == {name: value}


def test_the_last_assignment_counts_and_options_that_were_not_given_do_not():
    found = parse_overrides(["depth=3", "depth=4"], alpha=None, eta=0.5)
    assert found == {"depth": 4, "eta": 0.5}


@pytest.mark.parametrize("text", ["depth", "", "=3"])
def test_an_assignment_without_a_value_is_refused(text):
    with pytest.raises(ConfigError, match="has no value"):
        parse_overrides([text])


def test_a_name_that_is_no_file_may_be_one_of_timm(refused, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    said = refused("export", "deit_small_patch16_224.fb_in1k", "-o", tmp_path / "b")
    assert "There is no file deit_small_patch16_224.fb_in1k; and timm" in said
    assert "pip install timm" in said


def test_options_of_gates_need_gates(refused, tmp_path):
    call = ("export", "-o", tmp_path / "b", "--random-weights", "--preset")
    said = refused(*call, "sac_deit_small_patch16_224", "--gates", "exact")
    assert "mode was set. The family 'sac_vit' has no gates" in said
    assert "svit_deit_small_patch16_224" in said
    assert "two-stage" in refused(*call, "deit_small_patch16_224", "--alpha", 0.5)


def test_a_url_is_shown_as_it_was_given(refused, tmp_path):
    said = refused("export", "https://host/a/b.pth", "-o", tmp_path / "b")
    assert said.startswith("Error: https://host/a/b.pth is a URL, not a file.")


def test_a_side_that_is_no_multiple_of_the_patch(refused, tmp_path):
    call = ("export", "-o", tmp_path / "b", "--random-weights", "--preset", "demo_patch8_64")
    said = refused(*call, "--set", "image_size=63")
    assert "image_size is (63, 63).\nMake it two multiples of 8 (the patch size)." in said


def test_names_of_ids_go_by_the_order_of_the_ids(invoke, tmp_path):
    file = tmp_path / "classes.json"
    of_id = {"n00000003": "emu", "n00000001": "cat", "n00000002": "dog"}
    entries = [{"wnid": key, "name": name, "synonyms": "x, y"} for key, name in of_id.items()]
    file.write_text(json.dumps(entries))
    call = ("export", "-o", tmp_path / "b", "--preset", "demo_patch8_64", "--random-weights")
    ran = invoke(*call, *TINY, "--labels", file)
    assert ran.code == 0, ran
    assert Bundle.open(tmp_path / "b").manifest.labels == ("cat", "dog", "emu")


_EXPORTING = ("onnx", "onnx_graphsurgeon", "onnxscript", "safetensors")


@pytest.mark.parametrize(
    ("verb", "library"),
    [
        *(("export", library) for library in _EXPORTING),
        *(("bisect-precision", library) for library in _EXPORTING[:2]),
    ],
)
def test_a_torch_without_the_other_libraries(refused, monkeypatch, tmp_path, verb, library):
    monkeypatch.setitem(sys.modules, library, None)
    call = ["export", "model.pth", "-o", tmp_path / "b"]
    if verb == "bisect-precision":
        call = [verb, "bundle", "data", "--precision", "fp16", "-o", tmp_path / "keep.txt"]
    said = refused(*call)
    assert f" needs {library}, which is not installed" in said
    assert "pip install 'sacvit-deploy[export]'" in said


def test_threads_are_those_of_torch_and_of_every_session(
    invoke, refused, translated, sac_checkpoint, table, monkeypatch, tmp_path
):
    asked: list[int] = []
    opened: list[int] = []
    make = onnxruntime.InferenceSession

    def recorded(path: str, settings: onnxruntime.SessionOptions, *rest: Any, **named: Any) -> Any:
        opened.append(settings.intra_op_num_threads)
        return make(path, settings, *rest, **named)

    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    call = ("export", sac_checkpoint, "-o", tmp_path / "b", "--precision", "int8")
    ran = invoke(*call, "--calibration-data", table, "--threads", 1)
    assert ran.code == 0, ran
    assert asked == [1]
    assert len(opened) > 6
    assert set(opened) == {1}
    assert "threads" in refused(*call, "--calibration-data", table, "--force", "--threads", 0)
