from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.bundle_changes import publish, staging_folder, update_manifest
from sacvit_deploy.manifest import MANIFEST
from tests.engines.typed_onnx import write_typed_bundle
from tests.test_bundle_changes import ENTRY


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sac_host", ["sac_vit: 32x48 px", "12 of 24 tokens", "clustered", "selection by host"]),
        ("sac_graph", ["uint8 (batch, 3, 32, 48)", "selection by graph"]),
        ("dense_bundle", ["vit: 32x48 px", "model.onnx  single  fp32", "origin random, seed 5"]),
    ],
)
def test_what_is_in_a_bundle(invoke, request, name, says):
    bundle = request.getfixturevalue(name)
    ran = invoke("inspect", bundle.path)
    assert ran.code == 0
    for part in says:
        assert part in ran.out
    for graph in bundle.manifest.graphs:
        for tensor in (*graph.inputs, *graph.outputs):
            assert f" {tensor.name}  {tensor.dtype} (" in ran.out
    for file, record in bundle.manifest.files.items():
        assert file in ran.out
        assert record.sha256[:12] in ran.out
    assert "of its largest value) at batch" in ran.out
    assert f"torch {bundle.manifest.tools['torch']}" in ran.out


def test_the_document_is_the_description(invoke, sac_host):
    ran = invoke("inspect", sac_host.path, "--json")
    assert json.loads(ran.out) == json.loads((sac_host.path / MANIFEST).read_text())


def test_a_damaged_engine_is_named_with_its_fix(invoke, tmp_path):
    bundle = write_typed_bundle(tmp_path / "bundle")
    with staging_folder(bundle) as staging:
        (staging / "engines").mkdir()
        (staging / ENTRY.file).write_bytes(b"plan")
        publish(bundle, staging, dataclasses.replace(bundle.manifest, engines=(ENTRY,)))
    assert "(all files intact)" in invoke("inspect", bundle.path).out
    bundle.engine_path(ENTRY).unlink()
    ran = invoke("inspect", bundle.path)
    assert ran.code == 0
    assert "(1 damaged, all other files intact)" in ran.out
    assert "not usable: it is missing\n" in ran.out
    assert f"Build it again: sacvit-deploy build-engine {bundle.path} --fp16" in ran.out
    ran = invoke("inspect", bundle.path, "--json")
    assert json.loads(ran.out) == json.loads((bundle.path / MANIFEST).read_text())
    assert ran.err == f"Warning: {ENTRY.file} is missing\n"


def test_a_bundle_without_a_measurement(invoke, copied):
    bundle = Bundle.open(copied)
    update_manifest(bundle, dataclasses.replace(bundle.manifest, parity=(), tools={}))
    ran = invoke("inspect", copied)
    assert ran.code == 0
    assert "parity   not measured" in ran.out


def test_a_description_of_an_older_format_is_shown_as_it_is(invoke, sac_host, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(sac_host.path, folder)
    values = json.loads((folder / "bundle.json").read_text())
    del values["digest"]
    values["format_version"] = 1
    (folder / "bundle.json").write_text(json.dumps(values))
    assert json.loads(invoke("inspect", folder, "--json").out) == values
