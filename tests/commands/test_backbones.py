"""Commands on a bundle that gives features instead of classes."""

from __future__ import annotations

import json

import pytest

from sacvit_deploy.samples import sample_pictures


@pytest.mark.parametrize("command", ["run", "evaluate", "calibrate", "visualize"])
def test_what_needs_classes_says_what_to_use(command, backbone_bundle, table, refused, tmp_path):
    labelled = command in ("evaluate", "calibrate")
    last = {
        "visualize": ["-o", tmp_path / "tokens.png"],
        "calibrate": ["--max-accuracy-drop", "0.01"],
    }.get(command, [])
    picture = sample_pictures()[0]
    said = refused(command, backbone_bundle.path, table if labelled else picture, *last)
    assert "is a backbone: it gives the features c2 to c5" in said
    assert "sacvit_deploy.load(path)(picture).features" in said


def test_verify_compares_features(invoke, backbone_bundle):
    ran = invoke("verify", backbone_bundle.path)
    assert ran.code == 0, ran
    assert "on 4 pictures: features off by" in ran.out
    ran = invoke("verify", backbone_bundle.path, "--json")
    assert json.loads(ran.out)["max_tensor_error"] < 1e-4


def test_inspect_names_features(invoke, backbone_bundle):
    ran = invoke("inspect", backbone_bundle.path)
    assert "heads 3, features" in ran.out
    assert "classes" not in ran.out


@pytest.mark.slow
def test_benchmark_times_the_only_graph(invoke, backbone_bundle):
    ran = invoke("benchmark", backbone_bundle.path, "--batch", "1", "--json")
    (row,) = json.loads(ran.out)["rows"]
    assert row["ms_p50"] > 0
