from __future__ import annotations

import base64
import io
import json
import re
import zipfile

import pytest
from PIL import Image

from sacvit_deploy.evaluation.predictions import Prediction
from sacvit_deploy.runtime.result import Result
from sacvit_deploy.samples import read_samples
from sacvit_deploy.visualize.gallery import gallery
from tests.labelled_pictures import write_pictures, zipped


def predictions(data, stage="early_exit") -> list[Prediction]:
    best = ((1, "a <cat>", 0.873),)
    return [
        Prediction(
            sample, 0, sample.label, Result(sample.path, 1, "a <cat>", 0.873, stage, 0.9, best)
        )
        for sample in read_samples(data).samples
    ]


def thumbnails(html: str) -> list[Image.Image]:
    data = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in data]


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path / "data", ["dog"], 3)


@pytest.mark.parametrize("kind", ["folder", "zip", "csv", "jsonl"])
def test_every_kind_of_data_has_thumbnails(folder, kind):
    table = folder.with_suffix(f".{kind}")
    names = [f"data/dog/{number:03}.png" for number in range(3)]
    if kind == "zip":
        zipped(folder)
    elif kind == "csv":
        table.write_text("".join(f"{name},dog\n" for name in names))
    elif kind == "jsonl":
        rows = ({"path": name, "label": "dog"} for name in names)
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = gallery(predictions(folder if kind == "folder" else table))
    assert len(thumbnails(html)) == 3
    assert html.count("<li") == html.count("</li>") == 3


def test_a_card_says_class_answer_probability_stage_and_name(folder):
    html = gallery(predictions(folder)[:1])
    for part in ("<b>dog</b>", "taken for a &lt;cat&gt;", "87.3%, early exit", "000.png<"):
        assert part in html
    assert f'title="{folder}/dog/000.png"' in html
    assert "87.3%, second stage" in gallery(predictions(folder, "refine"))
    assert "87.3%<" in gallery(predictions(folder, "single"))


@pytest.mark.parametrize("size", [(4000, 3000), (40, 30), (50, 900), (900, 2)])
def test_thumbnails_are_small_and_keep_their_shape(tmp_path, size):
    (tmp_path / "dog").mkdir()
    Image.effect_noise(size, 80).convert("RGB").save(tmp_path / "dog" / "1.jpg")
    html = gallery(predictions(tmp_path))
    (small,) = thumbnails(html)
    assert max(small.size) == min(128, max(size))
    scale = max(small.size) / max(size)
    assert small.size == tuple(max(1, round(side * scale)) for side in size)
    assert len(html) < 20_000


def test_a_turned_photo_is_upright(tmp_path):
    (tmp_path / "dog").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 30)).save(tmp_path / "dog" / "1.jpg", exif=exif)
    (small,) = thumbnails(gallery(predictions(tmp_path)))
    assert small.size == (30, 60)


def test_pictures_that_went_or_broke_have_cards_without_thumbnails(folder):
    found = predictions(folder)
    (folder / "dog" / "000.png").unlink()
    (folder / "dog" / "001.png").write_bytes(b"no picture")
    html = gallery(found)
    assert html.count("cannot be read any more") == 2
    assert len(thumbnails(html)) == 1
    assert html.count("<b>dog</b>") == 3


def test_a_damaged_archive_is_no_failure_either(folder):
    archive = zipped(folder)
    found = predictions(archive)
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        start = opened.infolist()[1].header_offset
    content[start + 4 : start + 400] = bytes(396)
    archive.write_bytes(content)
    html = gallery(found)
    assert html.count("cannot be read any more") == 1
    assert len(thumbnails(html)) == 2
