from __future__ import annotations

import dataclasses
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

import sacvit_deploy
from sacvit_deploy.errors import ConfigError, ImageError
from sacvit_deploy.spec import SCORE
from sacvit_deploy.visualize.token_map import look, token_map
from tests.fakes import DENSE, SAC, random_pictures
from tests.visualize.token_fakes import fake_pipeline, noise_picture

PICTURES = random_pictures(20)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("selection", ["host", "graph"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_answers_are_those_of_the_pipeline(selection, eta):
    pipeline = fake_pipeline(selection=selection)
    found = look(pipeline, PICTURES, eta)
    assert [seen.result for seen in found] == pipeline(PICTURES, eta=eta)
    early = pipeline(PICTURES, eta=0)
    assert {seen.result.image for seen in found} == {None}
    assert [seen.early_label for seen in found] == [result.label for result in early]


def test_an_eta_counts_whatever_the_budget():
    pipeline = fake_pipeline()
    budgeted = pipeline.with_budget(ms=1e-3, max_eta=0.0)
    found = [seen.result for seen in look(budgeted, PICTURES, 1.0)]
    assert found == pipeline(PICTURES, eta=1.0)


@pytest.mark.parametrize("selection", ["host", "graph"])
def test_targets_are_the_tokens_of_the_highest_score(selection):
    for seen in look(fake_pipeline(selection=selection), PICTURES[:5], 1.0):
        order = np.argsort(-seen.score, kind="stable")[: SAC.num_targets]
        assert seen.result.target_tokens == tuple(order.tolist())


def test_no_graph_runs_twice():
    pipeline = fake_pipeline()
    look(pipeline, PICTURES[:5], 1.0)
    calls = {role: session.calls for role, session in pipeline._opened.sessions.items()}  # type: ignore[attr-defined]
    assert [len(call["image"]) for call in calls["early_exit"]] == [5]
    assert [len(call["image"]) for call in calls["refine"]] == [5]
    assert SCORE not in calls["refine"][0]


def test_batches_stay_within_the_largest():
    pipeline = fake_pipeline()
    pipeline._opened = dataclasses.replace(pipeline._opened, largest_batch=3)
    look(pipeline, PICTURES[:8], 0.0)
    calls = pipeline._opened.sessions["early_exit"].calls  # type: ignore[attr-defined]
    assert [len(call["image"]) for call in calls] == [3, 3, 2]


def test_only_the_part_that_the_network_sees_is_shown():
    """The middle of a wide picture is white, and only the middle is cropped."""
    height, width = SAC.image_size
    picture = np.zeros((height, 5 * width, 3), np.uint8)
    picture[:, 2 * width - 4 : 3 * width + 4] = 255
    (seen,) = look(fake_pipeline(), [picture])
    assert np.asarray(seen.seen).min() == 255
    assert seen.seen.width / seen.seen.height == pytest.approx(width / height, rel=0.01)
    assert seen.seen.width > 10 * width
    assert seen.result.image is None


def test_names_are_as_they_were_given(tmp_path):
    file = tmp_path / "cat.png"
    Image.fromarray(PICTURES[0]).save(file)
    path, text = look(fake_pipeline(), [file, str(file)])
    assert path.result.image == text.result.image == str(file)


def test_what_cannot_be_looked_at(tmp_path):
    with pytest.raises(ConfigError, match="one stage"):
        look(fake_pipeline(DENSE), PICTURES[:1])
    with pytest.raises(ConfigError, match="no picture"):
        look(fake_pipeline(), [])
    with pytest.raises(ConfigError, match="eta"):
        look(fake_pipeline(), PICTURES[:1], 1.5)
    (tmp_path / "cat.jpg").write_text("no")
    with pytest.raises(ImageError, match=r"cat\.jpg"):
        look(fake_pipeline(), [PICTURES[0], tmp_path / "cat.jpg"])


def test_it_is_public():
    assert sacvit_deploy.token_map is token_map


@pytest.mark.parametrize("name", ["tokens.png", "TOKENS.PNG", "tokens.svg"])
def test_it_is_saved_by_its_ending(tmp_path, name):
    made = token_map(fake_pipeline(), noise_picture())
    made.save(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    if name.endswith("svg"):
        root = ET.fromstring((tmp_path / name).read_bytes())
        width, height = made.size
        assert (root.get("width"), root.get("height")) == (str(width), str(height))
        assert len(list(root.iter(f"{SVG}image"))) == 1
        words = {text.text for text in root.iter(f"{SVG}text")}
        assert "score of each token" in words
    else:
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            assert image.size == tuple(2 * side for side in made.size)


@pytest.mark.parametrize("wrong", [{"columns": 0}, {"eta": 2}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        token_map(fake_pipeline(), noise_picture(), **wrong)
