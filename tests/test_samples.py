from __future__ import annotations

import io
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import sacvit_deploy
from sacvit_deploy.errors import DataError, ImageError
from sacvit_deploy.runtime.pictures import read_picture
from sacvit_deploy.runtime.result import Result
from sacvit_deploy.samples import (
    read_pictures,
    read_samples,
    sample_licences,
    sample_photographs,
    sample_pictures,
)

FILES = {"cat/b.jpg": 10, "cat/a.PNG": 20, "dog/deep/c.webp": 30}


def encoded(level: int, name: str) -> bytes:
    stream = io.BytesIO()
    kind = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[name.rpartition(".")[2].lower()]
    Image.new("RGB", (8, 8), (level,) * 3).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    root: Path = tmp_path / "data"
    for name, level in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(level, name))
    (root / "cat" / "notes.txt").write_text("not a picture")
    (root / "README.md").write_text("not a class")
    (root / ".cache").mkdir()
    return root


def zipped(path: Path, top: str, extra: tuple[str, ...] = ()) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, level in FILES.items():
            archive.writestr(top + name.replace("/deep", ""), encoded(level, name))
        for name in extra:
            archive.writestr(name, b"")
    return path


def levels(found) -> list[int]:
    return [int(np.asarray(read_picture(sample)).mean().round()) for sample in found.samples]


def test_a_folder_of_class_folders(folder):
    found = read_samples(folder)
    assert found.classes == ("cat", "dog")
    assert [sample.label for sample in found.samples] == ["cat", "cat", "dog"]
    assert [Path(sample.name).name for sample in found.samples] == ["a.PNG", "b.jpg", "c.webp"]
    assert levels(found) == [20, 10, 30]


@pytest.mark.parametrize("top", ["", "data/", "some/where/data/", "./"])
def test_a_zip_under_any_top_folder(tmp_path, top):
    extra = (f"{top}cat/notes.txt", "__MACOSX/data/cat/._b.jpg")
    found = read_samples(zipped(tmp_path / "data.ZIP", top, extra))
    assert found.classes == ("cat", "dog")
    assert [sample.label for sample in found.samples] == ["cat", "cat", "dog"]
    assert levels(found) == [20, 10, 30]
    for sample in found.samples:
        assert sample.path == f"{tmp_path / 'data.ZIP'}/{sample.name}"


@pytest.mark.parametrize("header", ["", "path,label\n", "\ufeffPath, Label\n"])
def test_a_csv_with_or_without_header(folder, header):
    table = folder / "table.csv"
    table.write_text(f"{header}dog/deep/c.webp,dog\n\ncat/b.jpg, cat \n", encoding="utf-8")
    found = read_samples(table)
    assert found.classes == ("cat", "dog")
    assert [sample.label for sample in found.samples] == ["dog", "cat"]
    assert levels(found) == [30, 10]


def test_a_jsonl(folder):
    table = folder / "table.jsonl"
    rows = [{"path": "dog/deep/c.webp", "label": "Hündin"}, {"path": "cat/a.PNG", "label": 3}]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    table.write_text(text, encoding="utf-8")
    found = read_samples(table)
    assert [sample.label for sample in found.samples] == ["Hündin", "3"]
    assert levels(found) == [30, 20]


def test_absolute_paths_in_a_table(folder, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(f"{folder / 'cat' / 'a.PNG'},cat\n")
    assert levels(read_samples(table)) == [20]


def test_an_empty_class_folder_is_named(folder):
    (folder / "emu").mkdir()
    with pytest.raises(DataError, match="1 class folders without a picture: emu"):
        read_samples(folder)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none", None, "does not exist"),
        ("data.tar", b"x", "is not a data set"),
        ("data.zip", b"", "cannot be read"),
        ("data.zip", b"PK\x03\x04 no archive", "cannot be read"),
        ("data.csv", b"", "names no picture"),
        ("data.csv", b"path,label\n", "names no picture"),
        ("data.csv", b"a.jpg\n", r"Row 1 of .* has 1 column\."),
        ("data.csv", b"path,label\na.jpg,cat\na.jpg,cat,9\n", r"Row 2 of .* has 3 columns\."),
        ("data.csv", b"\xff\xfe\x00", "cannot be read"),
        ("data.jsonl", b"", "names no picture"),
        ("data.jsonl", b'{"path": "a.jpg", "label": "x"}\n{"path": 1}\n', "Line 2"),
        ("data.jsonl", b"[1, 2]\n", "Line 1"),
        ("data.jsonl", b"a.jpg cat\n", "Line 1"),
        ("data.jsonl", b"3\n", "Line 1"),
        ("data.jsonl", b"[" * 100_000, "Line 1"),
        ("data.jsonl", b'{"path": "\\ud800.jpg", "label": "x"}\n', "Line 1"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_samples(path)


@pytest.mark.parametrize("name", ["data.zip", "data.csv", "data.jsonl"])
def test_a_device_is_no_data_set(tmp_path, name):
    (tmp_path / name).symlink_to(os.devnull)
    with pytest.raises(DataError, match="not a regular file"):
        read_samples(tmp_path / name)


def test_a_truncated_zip_is_refused(tmp_path):
    path = zipped(tmp_path / "data.zip", "data/")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"data\.zip cannot be read"):
        read_samples(path)


def test_folders_without_pictures_are_refused(tmp_path):
    for inside in ((), ("a",), ("a", "b")):
        for name in inside:
            (tmp_path / name).mkdir(exist_ok=True)
        with pytest.raises(DataError, match="no pictures in class folders"):
            read_samples(tmp_path)
    (tmp_path / "cat.jpg").write_bytes(encoded(1, "cat.jpg"))
    with pytest.raises(DataError, match="no pictures in class folders"):
        read_samples(tmp_path)


def test_where_labels_do_not_matter_a_folder_of_pictures_will_do(tmp_path, folder):
    assert read_pictures(folder) == read_samples(folder).samples
    assert read_pictures(zipped(tmp_path / "data.zip", ""))[0].label == "cat"
    frames = tmp_path / "frames"
    frames.mkdir()
    with pytest.raises(DataError, match="frames holds no pictures"):
        read_pictures(frames)
    (frames / "notes.txt").write_text("not a picture")
    (frames / ".thumbnails").mkdir()
    for level, name in enumerate(("b.PNG", "a.jpg")):
        (frames / name).write_bytes(encoded(10 * level, name))
    found = read_pictures(frames)
    assert [(Path(sample.name).name, sample.label) for sample in found] == [
        ("a.jpg", ""),
        ("b.PNG", ""),
    ]
    assert [np.asarray(read_picture(sample)).max() for sample in found] == [10, 0]
    with pytest.raises(DataError, match="no pictures in class folders"):
        read_samples(frames)
    with pytest.raises(DataError, match="does not exist"):
        read_pictures(tmp_path / "none")


def test_pictures_beside_class_folders_are_not_passed_over(folder):
    (folder / "loose.jpg").write_bytes(encoded(1, "loose.jpg"))
    with pytest.raises(DataError, match=r"1 pictures beside its folders, such as loose\.jpg"):
        read_pictures(folder)


def test_a_zip_without_pictures_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("cat/readme.txt", "nothing")
    with pytest.raises(DataError, match="no pictures in class folders"):
        read_samples(tmp_path / "data.zip")


def test_a_damaged_picture_in_a_zip_is_an_image_error(tmp_path):
    path = zipped(tmp_path / "data.zip", "data/")
    content = bytearray(path.read_bytes())
    content[content.index(b"data/cat/b.jpg") + 60] ^= 0xFF
    path.write_bytes(content)
    (damaged,) = [s for s in read_samples(path).samples if s.name.endswith("b.jpg")]
    with pytest.raises(ImageError, match=r"b\.jpg"):
        read_picture(damaged)


@pytest.mark.parametrize(
    ("flags", "method", "says"),
    [
        (0, zipfile.ZIP_STORED, "Bad CRC-32"),
        (0, zipfile.ZIP_DEFLATED, "decompressing"),
        (1, zipfile.ZIP_STORED, "encrypted"),
        (0, 99, "not supported"),
    ],
)
def test_a_part_that_cannot_be_unpacked_is_an_image_error(flags, method, says, tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("cat/a.png", b"\xff" * 99)
    content = (tmp_path / "data.zip").read_bytes()
    for start, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.index(start) + at
        header = bytes((flags, 0, method, 0))
        content = content[:place] + header + content[place + 4 :]
    (tmp_path / "data.zip").write_bytes(content.replace(b"\xff\xff\xff", b"\xff\xfe\xff"))
    (sample,) = read_samples(tmp_path / "data.zip").samples
    with pytest.raises(ImageError, match=says):
        read_picture(sample)


def test_a_missing_picture_of_a_table_is_an_image_error(tmp_path):
    (tmp_path / "table.csv").write_text("gone.jpg,cat\n")
    (sample,) = read_samples(tmp_path / "table.csv").samples
    with pytest.raises(ImageError, match=r"gone\.jpg.* does not exist"):
        read_picture(sample)


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[str, Result]]:
    """Class of each photograph of the package by its name, and the answer of the demo network."""
    samples = sample_photographs().samples
    with sacvit_deploy.load(sacvit_deploy.demo_bundle(), backend="onnxruntime") as pipeline:
        results = pipeline([sample.name for sample in samples])
    return {
        Path(sample.name).name: (sample.label, result)
        for sample, result in zip(samples, results, strict=True)
    }


def test_the_photographs_ship_with_their_licences():
    samples, text = sample_photographs().samples, sample_licences().read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+\.jpg)` \|.*\| ([^|]+) \|$", text, re.MULTILINE))
    paths = [Path(sample.name) for sample in samples]
    assert list(rows) == sorted(path.name for path in paths)
    stated = {re.sub(r"\[([^]]+)\].*", r"\1", licence) for licence in rows.values()}
    assert stated == {"public domain", "CC0", "CC0 1.0", "CC BY 2.0"}
    assert {path.name for path in paths[0].parent.glob("*.jpg")} == set(rows)
    assert set(sample_pictures()) < set(paths)
    for path in paths:
        assert max(read_picture(path).size) <= (512 if path in sample_pictures() else 320)
    assert sum(path.stat().st_size for path in paths) < 450_000


def test_the_sample_pictures_were_chosen_as_the_licences_say(answers):
    right = {name: result for name, (label, result) in answers.items() if result.label == label}
    assert f"{len(right)} of the {len(answers)} correctly" in sample_licences().read_text("utf-8")
    surest = sorted(right, key=lambda name: -right[name].probability)
    chosen: list[str] = []
    for name in surest:
        of_stage = [other for other in chosen if right[other].stage == right[name].stage]
        if len(of_stage) < 2 and answers[name][0] not in {answers[other][0] for other in chosen}:
            chosen.append(name)
    assert sorted(chosen) == sorted(path.name for path in sample_pictures())


@pytest.mark.slow
def test_no_photograph_was_used_in_training(shared):
    """As LICENSES.md describes it: the nearest training picture of each is another picture."""
    known = []
    for name in ("train", "val"):
        for sample in read_samples(shared / f"data/tiny-imagenet-50/{name}.zip").samples:
            with Image.open(sample.open()) as picture:
                known.append(_signature(picture))
    matrix = np.array(known)
    assert matrix.shape == (26_250, 256)
    nearest = {}
    for sample in sample_photographs().samples:
        picture = read_picture(sample)
        square = ImageOps.fit(picture, (min(picture.size),) * 2)
        forms = [picture, square, ImageOps.mirror(picture), ImageOps.mirror(square)]
        nearest[Path(sample.name).name] = max((matrix @ _signature(f)).max() for f in forms)
    text = sample_licences().read_text("utf-8")
    name = max(nearest, key=lambda name: nearest[name])
    assert f"the nearest has {nearest[name]:.3f} (`{name}`" in text


def _signature(picture: Image.Image) -> np.ndarray:
    """16x16 pixels of grey, of mean 0 and length 1; the product of two is their correlation."""
    grey = np.asarray(picture.convert("L").resize((16, 16), Image.Resampling.BOX), np.float64)
    centred = grey.ravel() - grey.mean()
    return np.asarray(centred / max(np.linalg.norm(centred), 1e-12))
