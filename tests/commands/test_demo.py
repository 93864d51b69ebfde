from __future__ import annotations

import json

import pytest
from PIL import Image

import sacvit_deploy
from sacvit_deploy.bundle import Bundle
from sacvit_deploy.samples import sample_photographs, sample_pictures


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


def test_every_picture_of_the_demo_is_right(invoke, tmp_path):
    found = json.loads(invoke("demo", "-o", tmp_path, "--json").out)["results"]
    classes = {sample.name: sample.label for sample in sample_photographs().samples}
    assert [entry["label"] for entry in found] == [classes[entry["image"]] for entry in found]
    assert {entry["stage"] for entry in found} == {"early_exit", "refine"}


def test_the_demo_writes_what_other_commands_need(invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = invoke("demo", "--pictures", "p", "--labelled", "l", "--bundle", "b")
    assert ran.code == 0, ran
    assert ran.out.splitlines() == [
        "p: 4 pictures",
        "l: 120 pictures of 9 classes",
        "These are views of 15 photographs. They serve to try the commands, and say nothing about "
        "accuracy.",
        "b: the demo network, as a bundle",
        "Next: sacvit-deploy evaluate b l",
    ]
    assert not (tmp_path / "demo-output").exists()
    evaluated = json.loads(invoke("evaluate", "b", "l", "--json").out)
    assert (evaluated["images"], evaluated["skipped"]) == (120, [])
    calibrated = invoke("calibrate", "b", "l", "--target-exit-fraction", "0.5")
    assert calibrated.code == 0, calibrated
    assert len(json.loads(invoke("run", "b", "p", "--json").out)) == 4


@pytest.mark.parametrize(
    ("option", "following"),
    [
        ("--pictures", "run BUNDLE out"),
        ("--labelled", "evaluate BUNDLE out"),
        ("--bundle", "run out PICTURE"),
    ],
)
def test_each_part_says_what_follows(invoke, tmp_path, monkeypatch, option, following):
    monkeypatch.chdir(tmp_path)
    ran = invoke("demo", option, "out")
    assert ran.code == 0, ran
    assert ran.out.splitlines()[-1] == f"Next: sacvit-deploy {following}"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_the_following_command_can_be_pasted(invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = invoke("demo", "--bundle", "my bundle")
    assert ran.out.splitlines()[-1] == "Next: sacvit-deploy run 'my bundle' PICTURE"


def test_what_was_written_as_a_document(invoke, tmp_path):
    ran = invoke("demo", "--labelled", tmp_path / "l", "--bundle", tmp_path / "b", "--json")
    assert json.loads(ran.out) == {
        "labelled": {"folder": str(tmp_path / "l"), "images": 120, "classes": 9, "photographs": 15},
        "bundle": {"folder": str(tmp_path / "b")},
    }


@pytest.mark.parametrize("option", ["--pictures", "--labelled", "--bundle"])
def test_a_folder_that_cannot_be_written(refused, tmp_path, option):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refused("demo", option, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("option", ["--labelled", "--bundle"])
def test_a_folder_with_something_else(refused, tmp_path, option):
    (tmp_path / "mine.txt").write_text("mine")
    assert "mine.txt is already there" in refused("demo", option, tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.txt"]


@pytest.mark.parametrize("option", ["--output", "--eta"])
def test_options_of_the_demo_alone(invoke, tmp_path, option):
    ran = invoke("demo", "--pictures", tmp_path / "p", option, "1")
    assert ran.code == 2
    assert f"{option} is for the demo without --pictures" in ran.err
    assert not (tmp_path / "p").exists()


def test_an_output_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refused("demo", "-o", tmp_path / "file")


def test_the_demo_bundle_is_whole_and_trained():
    bundle = Bundle.open(sacvit_deploy.demo_bundle())
    assert not bundle.is_random
    assert "espresso" in bundle.manifest.labels
    assert sum(record.bytes for record in bundle.manifest.files.values()) <= 15e6
