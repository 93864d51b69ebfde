from __future__ import annotations

import json
from pathlib import Path

from sacvit_deploy.bundle import Bundle, demo_bundle
from sacvit_deploy.class_labels import labels
from sacvit_deploy.runtime.load import load
from sacvit_deploy.samples import sample_pictures


def test_names_are_given_later(invoke, copied, tmp_path):
    before = Bundle.open(copied).manifest
    names = [f"animal {index}" for index in range(len(before.labels))]
    (tmp_path / "names.txt").write_text("\n".join(names))
    ran = invoke("labels", copied, tmp_path / "names.txt")
    assert ran.code == 0
    assert ran.out == f"{copied}: {len(names)} classes, animal 0, animal 1, animal 2, ...\n"
    after = Bundle.open(copied).manifest
    assert list(after.labels) == names
    assert after.files == before.files
    with load(copied) as pipeline:
        assert pipeline(sample_pictures()[0]).label.startswith("animal ")


def test_the_names_beside_the_checkpoint_are_those_of_the_demo():
    names = labels(Path(__file__).resolve().parents[2] / "models" / "classes.txt")
    assert names == Bundle.open(demo_bundle()).manifest.labels


def test_the_document(invoke, copied, tmp_path):
    names = [f"{index}" for index in range(len(Bundle.open(copied).manifest.labels))]
    (tmp_path / "names.json").write_text(json.dumps(names))
    ran = invoke("labels", copied, tmp_path / "names.json", "--json")
    assert json.loads(ran.out) == {"bundle": str(copied), "labels": names}


def test_names_that_do_not_fit_change_nothing(refused, copied, backbone_bundle):
    before = (copied / "bundle.json").read_bytes()
    assert "names 1000 classes, the network has" in refused("labels", copied, "imagenet-1k")
    assert "cannot be read" in refused("labels", copied, "none.txt")
    assert (copied / "bundle.json").read_bytes() == before
    assert "has no classes" in refused("labels", backbone_bundle.path, "imagenet-1k")
