from __future__ import annotations

import dataclasses
import importlib
import json

import numpy as np
import pytest

from sacvit_deploy.errors import CheckpointError, ImageError, MissingDependencyError
from sacvit_deploy.evaluation import verify
from sacvit_deploy.evaluation.verify import Verification, verify_bundle
from sacvit_deploy.exporters.parity import TensorParity
from sacvit_deploy.model.checkpoints import save_checkpoint
from tests.fakes import random_pictures
from tests.tiny_models import OTHER_CHOICES, SAC

PICTURES = random_pictures(20)


@pytest.mark.parametrize("name", ["sac_host", "sac_graph"])
def test_a_bundle_agrees_with_its_checkpoint(name, sac_checkpoint, request):
    found = verify_bundle(request.getfixturevalue(name), PICTURES, sac_checkpoint)
    assert found.passed
    assert [record.role for record in found.graphs] == ["early_exit", "refine"]
    assert all(record.excess < 0.5 for record in found.graphs)
    assert found.agreement is not None
    assert found.agreement.images == len(PICTURES)
    assert found.agreement.target_overlap == 1
    assert found.agreement.max_probability_error < 1e-4


def test_the_document_is_that_of_the_contract(sac_host, sac_checkpoint):
    document = verify_bundle(sac_host, PICTURES[:2], sac_checkpoint).to_dict()
    values = json.loads(json.dumps(document))
    keys = {"graphs", "exit_flip_rate", "target_overlap", "label_agreement", "passed"}
    assert keys <= set(values)
    assert {"role", "max_abs_error"} <= set(values["graphs"][0])
    assert values["passed"] is True


def test_random_weights_are_made_again_from_their_seed(dense_bundle):
    found = verify_bundle(dense_bundle, [])
    assert found.passed
    assert found.agreement is None
    assert found.to_dict().keys() == {"graphs", "passed"}
    weights = {"origin": "random", "seed": 6}
    manifest = dataclasses.replace(dense_bundle.manifest, weights=weights)
    other_seed = dataclasses.replace(dense_bundle, manifest=manifest)
    assert not verify_bundle(other_seed, []).passed


def test_other_weights_do_not_pass(sac_host, sac_model, tmp_path):
    path = tmp_path / "later.safetensors"
    state = {name: value.clone() for name, value in sac_model.state_dict().items()}
    # One channel only: LayerNorm takes out what all have in common.
    state["fusion.mlp.fc2.bias"][0] += 1
    save_checkpoint(path, state, SAC)
    found = verify_bundle(sac_host, PICTURES, path)
    assert not found.passed
    early, refine = found.graphs
    assert early.excess < 1 < refine.excess


def test_a_graph_within_tolerance_that_decides_differently_does_not_pass(
    sac_host, sac_checkpoint, monkeypatch
):
    real = vars(verify)["compare_decisions"]

    def flipped(*arguments):
        return dataclasses.replace(real(*arguments), exit_flip_rate=0.5)

    monkeypatch.setattr(verify, "compare_decisions", flipped)
    found = verify_bundle(sac_host, PICTURES[:2], sac_checkpoint)
    assert not found.passed
    assert all(record.excess < 1 for record in found.graphs)


def test_without_the_checkpoint_it_says_which_to_name(sac_host):
    with pytest.raises(CheckpointError, match=r"sac\.safetensors.*\n.*--against CHECKPOINT"):
        verify_bundle(sac_host, PICTURES)


def test_the_checkpoint_of_another_network_is_refused(sac_host, tmp_path):
    from tests.tiny_models import strong_model

    other = strong_model(OTHER_CHOICES.replace(embed_dim=48))
    save_checkpoint(tmp_path / "other.safetensors", other.state_dict(), other.config)
    with pytest.raises(CheckpointError):
        verify_bundle(sac_host, PICTURES, tmp_path / "other.safetensors")


def test_a_bad_picture_is_refused(sac_host, sac_checkpoint, tmp_path):
    (tmp_path / "cat.jpg").write_text("no")
    with pytest.raises(ImageError, match=r"cat\.jpg"):
        verify_bundle(sac_host, [*PICTURES[:3], tmp_path / "cat.jpg"], sac_checkpoint)


def test_without_torch_it_says_what_to_install(sac_host, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingDependencyError, match=r"sacvit-deploy\[export\]"):
        verify_bundle(sac_host, PICTURES)


def test_batches_are_joined_in_order(sac_model, sac_host):
    """More pictures than go into one batch, compared with all at once."""
    from sacvit_deploy.runtime.decisions import Decisions
    from sacvit_deploy.runtime.preprocess import Preprocessor

    preprocessor = Preprocessor(sac_host.manifest.preprocessing)
    batches = list(verify._batches(preprocessor, PICTURES))
    assert [len(batch) for batch in batches] == [16, 4]
    parts = [verify._torch_decisions(sac_model, batch) for batch in batches]
    found = Decisions.join(parts).refined_logits[17]
    (single,) = verify._batches(preprocessor, [PICTURES[17]])
    alone = verify._torch_decisions(sac_model, single).refined_logits[0]
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-4)


def test_a_verification_of_one_stage_is_json_too():
    record = TensorParity("single", "logits", 1, 0.0, 0.0)
    assert Verification((record,), None, True).to_dict() == {
        "graphs": [record.to_dict()],
        "passed": True,
    }
