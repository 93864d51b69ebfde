from __future__ import annotations

import json

from PIL import Image

import sacvit_deploy
from sacvit_deploy.bundle import Bundle
from sacvit_deploy.samples import sample_pictures


def test_the_demo_classifies_every_picture(invoke, tmp_path):
    ran = invoke("demo", "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["sheet"] == str(tmp_path / "out" / "tokens.png")
    assert [entry["image"] for entry in found["results"]] == list(map(str, sample_pictures()))
    with Image.open(found["sheet"]) as sheet:
        assert sheet.width > 4 * 320


def test_the_demo_says_what_it_is(invoke, tmp_path):
    ran = invoke("demo", "-o", tmp_path, "--eta", "1")
    assert ran.code == 0, ran
    for picture in sample_pictures():
        assert picture.name in ran.out
    assert ran.out.count("refined 8 tokens") == len(sample_pictures())
    assert "50 classes" in ran.out
    assert str(tmp_path / "tokens.png") in ran.out


def test_an_output_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refused("demo", "-o", tmp_path / "file")


def test_the_demo_bundle_is_whole_and_trained():
    bundle = Bundle.open(sacvit_deploy.demo_bundle())
    assert not bundle.is_random
    assert "espresso" in bundle.manifest.labels
    assert sum(record.bytes for record in bundle.manifest.files.values()) <= 15e6
