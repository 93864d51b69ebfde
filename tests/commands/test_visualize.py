from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from sacvit_deploy.samples import sample_pictures

CAT, COFFEE = sample_pictures()[:2]


def test_a_sheet_of_pixels(invoke, sac_host, tmp_path):
    file = tmp_path / "tokens.png"
    ran = invoke("visualize", sac_host.path, CAT, COFFEE, "-o", file, "--eta", "1")
    assert ran.code == 0, ran
    assert CAT.name in ran.out
    assert str(file) in ran.out
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert image.width > 1000


@pytest.mark.parametrize("name", ["sac_host", "sac_graph"])
def test_a_sheet_of_vectors_and_its_document(invoke, request, tmp_path, name):
    bundle = request.getfixturevalue(name)
    file = tmp_path / "tokens.svg"
    ran = invoke("visualize", bundle.path, CAT, "-o", file, "--eta", "1", "--json")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["sheet"] == str(file)
    (entry,) = found["results"]
    config = bundle.manifest.config
    order = sorted(range(config.num_coarse_tokens), key=lambda i: -entry["scores"][i])
    assert entry["target_tokens"] == order[: config.num_targets]
    assert ET.parse(file).getroot().tag.endswith("svg")


def test_columns_and_scores_can_be_chosen(invoke, sac_host, tmp_path):
    def size(*arguments):
        ran = invoke("visualize", sac_host.path, CAT, COFFEE, "-o", tmp_path / "t.png", *arguments)
        assert ran.code == 0, ran
        with Image.open(tmp_path / "t.png") as image:
            return image.size

    beside, below = size(), size("--columns", "1")
    assert below[0] < beside[0]
    assert below[1] > beside[1]
    assert size("--no-scores")[0] < beside[0]


@pytest.mark.parametrize(
    ("name", "title"), [("semantic_bundle", "semantic token"), ("gated_bundle", "gate keeps")]
)
def test_networks_of_one_graph_show_their_parts(invoke, request, tmp_path, name, title):
    file = tmp_path / "parts.png"
    bundle = request.getfixturevalue(name)
    ran = invoke("visualize", bundle.path, CAT, COFFEE, "-o", file)
    assert ran.code == 0, ran
    assert CAT.name in ran.out
    assert title in ran.out
    with Image.open(file) as image:
        assert image.format == "PNG"
    ran = invoke("visualize", bundle.path, CAT, "-o", file, "--json")
    (entry,) = json.loads(ran.out)["results"]
    assert entry["stage"] == "single"


def test_what_cannot_be_shown(refused, sac_host, dense_bundle, tmp_path):
    good = ("visualize", sac_host.path, CAT, "-o")
    (tmp_path / "bad.jpg").write_text("no")
    said = refused("visualize", sac_host.path, CAT, tmp_path / "bad.jpg", "-o", tmp_path / "t.png")
    assert "bad.jpg" in said
    assert ".png or .svg" in refused(*good, tmp_path / "tokens.gif")
    assert "cannot be written" in refused(*good, tmp_path / "none" / "tokens.png")
    assert "eta" in refused(*good, tmp_path / "t.png", "--eta", "2")
    assert "one stage" in refused("visualize", dense_bundle.path, CAT, "-o", tmp_path / "t.png")
    assert [file.name for file in tmp_path.iterdir()] == ["bad.jpg"]


def test_the_output_is_tried_before_the_work(refused, tmp_path):
    """Not even the bundle is opened."""
    said = refused("visualize", tmp_path / "none", CAT, "-o", tmp_path / "tokens.gif")
    assert "tokens.gif" in said


def test_wrong_usage(invoke, sac_host, tmp_path):
    assert invoke("visualize", sac_host.path, "-o", tmp_path / "t.png").code == 2
    assert invoke("visualize", sac_host.path, CAT).code == 2
    assert invoke("visualize", sac_host.path, CAT, "-o", "t.png", "--columns", "0").code == 2


def test_threads(invoke, refused, sac_host, tmp_path):
    call = ("visualize", sac_host.path, CAT, "-o", tmp_path / "tokens.svg", "--threads")
    assert invoke(*call, 1).code == 0
    assert "threads" in refused(*call, 0)
