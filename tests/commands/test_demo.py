from __future__ import annotations

import json

import pytest
from PIL import Image

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.commands import demo
from sacvit_deploy.runtime.assets import sample_pictures
from tests.tiny_models import SAC


@pytest.fixture
def small(monkeypatch) -> None:
    config = SAC.replace(depth=1, score_first_block=0, num_classes=50)
    monkeypatch.setattr(demo, "preset", lambda _name: config)


def test_the_demo_shows_both_stages_twice(invoke, tmp_path, small, monkeypatch):
    output = tmp_path / "out"
    ran = invoke("demo", "-o", output, "--json")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["sheet"] == str(output / "tokens.png")
    stages = [entry["stage"] for entry in found["results"]]
    assert sorted(stages) == ["early_exit"] * 2 + ["refine"] * 2
    assert Bundle.open(output / "bundle").is_random
    with Image.open(output / "tokens.png") as sheet:
        assert sheet.width > 4 * 320
    # For people; with the same bundle, since another export takes its time.
    monkeypatch.setattr(demo, "_random_bundle", Bundle.open)
    ran = invoke("demo", "-o", output)
    assert ran.code == 0, ran
    for picture in sample_pictures():
        assert picture.name in ran.out
    assert "The weights are random" in ran.out
    assert str(output / "tokens.png") in ran.out


def test_a_folder_of_somebody_else_is_left_alone(refused, tmp_path, small):
    mine = tmp_path / "bundle"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert "is not a bundle" in refused("demo", "-o", tmp_path)
    assert [entry.name for entry in mine.iterdir()] == ["thesis.txt"]
