from __future__ import annotations

import json

import pytest

from sacvit_deploy.model.checkpoints import save_checkpoint
from sacvit_deploy.samples import sample_pictures
from tests.tiny_models import SAC


def test_a_good_bundle_passes(invoke, sac_host, sac_checkpoint):
    ran = invoke("verify", sac_host.path, "--against", sac_checkpoint)
    assert ran.code == 0, ran
    first, *_, last = ran.out.splitlines()
    assert first == f"{sac_host.path} (fp32 in onnxruntime) against {sac_checkpoint} (torch)"
    assert last == "passed"
    assert "early_exit: worst tensor" in ran.out
    assert "decisions on 4 pictures: 100.0% of labels the same, 100.0% of target tokens" in ran.out


def test_the_document_is_that_of_the_contract(invoke, sac_host, sac_checkpoint, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("".join(f"{picture},cat\n" for picture in sample_pictures()[:3]))
    ran = invoke("verify", sac_host.path, "--against", sac_checkpoint, "--data", table, "--json")
    assert ran.code == 0, ran
    assert ran.err == ""
    found = json.loads(ran.out)
    assert found["passed"] is True
    assert found["images"] == 3
    assert {"exit_flip_rate", "target_overlap", "label_agreement"} <= set(found)
    assert [graph["role"] for graph in found["graphs"]] == ["early_exit", "refine"]


def test_random_weights_need_no_checkpoint(invoke, dense_bundle):
    ran = invoke("verify", dense_bundle.path)
    assert ran.code == 0, ran
    assert "random weights (torch)" in ran.out
    assert "100.0% of labels" in ran.out


def test_layer_by_layer(invoke, sac_host, sac_graph):
    arguments = ("verify", sac_host.path, "--against", sac_graph.path, "--layers")
    ran = invoke(*arguments)
    assert ran.code == 0, ran
    assert "blocks.1.attn.proj" in ran.out
    assert "no layer is more than 0.001 off" in ran.out
    assert "the error grows most at" in ran.out
    ran = invoke(*arguments, "--max-tensor-error", "0", "--json")
    assert ran.code == 1
    found = json.loads(ran.out)
    assert found["layers"]
    assert {"place", "tensor", "node"} <= set(found["first_diverging"])


def test_a_bundle_of_other_weights_fails_with_its_document(invoke, sac_host, sac_model, tmp_path):
    state = {name: value.clone() for name, value in sac_model.state_dict().items()}
    state["head.bias"][0] += 3
    save_checkpoint(tmp_path / "later.safetensors", state, SAC)
    arguments = ("verify", sac_host.path, "--against", tmp_path / "later.safetensors", "--layers")
    ran = invoke(*arguments)
    assert ran.code == 1
    assert ran.out.splitlines()[-1] == "FAILED"
    assert "missed: max_tensor_error (logits of early_exit) is" in ran.out
    assert "at most 0.001 is allowed" in ran.out
    assert "first beyond 0.001: head of early_exit" in ran.out
    ran = invoke(*arguments, "--json")
    assert ran.code == 1
    assert json.loads(ran.out)["passed"] is False


def test_what_cannot_be_compared(refused, sac_host, sac_checkpoint, golden_checkpoint, tmp_path):
    assert "--against" in refused("verify", sac_host.path)
    assert "no file" in refused("verify", sac_host.path, "--against", tmp_path / "none.pth")
    assert "head" in refused("verify", sac_host.path, "--against", golden_checkpoint)
    arguments = ("verify", sac_host.path, "--against", sac_checkpoint, "--data")
    assert "does not exist" in refused(*arguments, tmp_path / "none")
    assert "no pictures" in refused(*arguments, tmp_path)
    assert "eta" in refused(*arguments[:-1], "--eta", "2")


def test_pictures_need_no_class_folders(invoke, dense_bundle):
    folder = sample_pictures()[0].parent
    ran = invoke("verify", dense_bundle.path, "--data", folder)
    assert ran.code == 0, ran
    assert f"decisions on {len(list(folder.glob('*.jpg')))} pictures" in ran.out


def test_what_the_bundle_does_not_have(refused, sac_host):
    assert "no early_exit graph in int8" in refused("verify", sac_host.path, "--precision", "int8")
    said = refused("verify", sac_host.path, "--backend", "tensorrt", "--against", "fp32")
    assert "no tensorrt engine" in said


@pytest.mark.parametrize(
    "wrong", [("--precision", "fp8"), ("--max-exit-flip-rate", "2"), ("--backend", "auto")]
)
def test_wrong_usage(invoke, sac_host, wrong):
    assert invoke("verify", sac_host.path, *wrong).code == 2


def test_a_comparison_is_left_for_polygraphy(invoke, sac_host, sac_checkpoint, tmp_path):
    pytest.importorskip("polygraphy", reason="needs the tensorrt-rtx extra")
    folder = tmp_path / "polygraphy"
    ran = invoke("verify", sac_host.path, "--against", sac_checkpoint, "--save-polygraphy", folder)
    assert ran.code == 0, ran
    assert {file.name for file in folder.iterdir()} == {
        "compare.sh", "early_exit.inputs.json", "early_exit.outputs.json",
        "refine.inputs.json", "refine.outputs.json",
    }  # fmt: skip
    assert f"sh {folder}/compare.sh onnxruntime" in ran.err


def test_threads_are_those_of_both_networks(invoke, refused, sac_host, sac_checkpoint, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    call = ("verify", sac_host.path, "--against", sac_checkpoint, "--threads")
    assert invoke(*call, 1).code == 0
    assert asked == [1]
    assert "threads" in refused(*call, 0)
