from __future__ import annotations

import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from sacvit_deploy.manifest import MANIFEST
from sacvit_deploy.runtime.load import load
from sacvit_deploy.samples import sample_pictures
from tests.fakes import random_pictures

PICTURES = sample_pictures()


def test_the_document_is_that_of_the_contract(invoke, sac_host):
    ran = invoke("run", sac_host.path, *PICTURES, "--eta", 1, "--json")
    assert ran.code == 0
    assert ran.err == ""
    found = json.loads(ran.out)
    assert found == [result.to_dict() for result in load(sac_host.path)(list(PICTURES), eta=1)]
    assert [entry["image"] for entry in found] == [str(picture) for picture in PICTURES]
    for entry in found:
        assert entry["stage"] == "refine"
        assert len(entry["target_tokens"]) == sac_host.manifest.config.num_targets
        assert len(entry["top5"]) == 5
    left = json.loads(invoke("run", sac_host.path, PICTURES[0], "--eta", 0, "--json").out)
    assert left[0]["stage"] == "early_exit"
    assert "target_tokens" not in left[0]


@pytest.mark.parametrize(
    ("name", "eta", "says"),
    [
        ("sac_host", 0, "left at the early exit"),
        ("sac_host", 1, "refined 12 tokens (early exit confidence "),
        ("sac_graph", 1, "refined 12 tokens"),
        ("dense_bundle", 1, "one stage"),
    ],
)
def test_a_line_for_each_picture(invoke, request, name, eta, says):
    ran = invoke("run", request.getfixturevalue(name).path, *PICTURES, "--eta", eta)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert len(lines) == len(PICTURES)
    for line, picture in zip(lines, PICTURES, strict=True):
        assert line.startswith(str(picture))
        assert says in line


def test_large_pictures_are_read_as_asked(invoke, sac_host, tmp_path):
    large = tmp_path / "large.jpg"
    Image.effect_noise((900, 800), 60).convert("RGB").save(large)
    found = {}
    for way in ("fast", "exact"):
        ran = invoke("run", sac_host.path, large, "--eta", 1, "--decode", way, "--json")
        with load(sac_host.path, decode=way) as pipeline:
            assert json.loads(ran.out) == [pipeline(large, eta=1).to_dict()]
        found[way] = ran.out
    assert found["fast"] != found["exact"]
    usual = invoke("run", sac_host.path, large, "--eta", 1, "--json")
    assert usual.out == found["fast"]


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and has no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


def bad_pictures(folder) -> dict[str, str]:
    """File name to what must be said of it."""
    (folder / "text.jpg").write_text("not an image")
    (folder / "truncated.jpg").write_bytes(PICTURES[0].read_bytes()[:3000])
    (folder / "empty.jpg").touch()
    (folder / "folder").mkdir()
    (folder / "bomb.png").write_bytes(png_header(30_000, 30_000))
    (folder / "nothing.png").write_bytes(png_header(0, 0))
    return {
        "text.jpg": "is not a picture that can be read",
        "truncated.jpg": "cannot be decoded",
        "empty.jpg": "is an empty file (0 bytes)",
        "folder": "is a folder",
        "bomb.png": "30000x30000 = 900,000,000 pixels",
        "nothing.png": "nothing.png",
        "none.jpg": "does not exist",
    }


def test_pictures_that_cannot_be_used_are_told_and_skipped(invoke, sac_host, tmp_path):
    wanted = bad_pictures(tmp_path)
    del wanted["folder"]  # a source of its own
    ran = invoke(
        "run", sac_host.path, PICTURES[0], *[tmp_path / name for name in wanted], PICTURES[1]
    )
    assert ran.code == 1
    assert [line.split()[0] for line in ran.out.splitlines()] == [str(p) for p in PICTURES[:2]]
    *told, last = ran.err.splitlines()
    for line, (name, says) in zip(told, wanted.items(), strict=True):
        assert line.startswith("Not read: The picture ")
        assert name in line
        assert says in line
    assert last == "6 of 8 could not be read."


def test_the_first_bad_picture_can_stop_the_run(invoke, refused, sac_host, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    stop = ("--on-error", "stop")
    ran = invoke("run", sac_host.path, PICTURES[0], tmp_path / "text.jpg", PICTURES[1], *stop)
    assert ran.code == 1
    assert ran.out.count("\n") == 1
    assert ran.err.startswith("Error: The picture ")
    assert "text.jpg" in refused("run", sac_host.path, tmp_path / "text.jpg", "--json", *stop)
    ran = invoke("run", sac_host.path, PICTURES[0], tmp_path / "text.jpg", "--json", *stop)
    assert len(json.loads(ran.out)) == 1
    assert "has no pictures" in refused("run", sac_host.path, tmp_path / "." / "x*")


@pytest.mark.parametrize("eta", [-0.1, 1.01, "nan", "inf"])
def test_eta_out_of_range(refused, sac_host, eta):
    assert "threshold eta" in refused("run", sac_host.path, PICTURES[0], "--eta", eta)


def damage_byte(path) -> None:
    content = bytearray((path / "weights.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "weights.bin").write_bytes(content)


def remove_graph(path) -> None:
    (path / "sac.onnx").unlink()


def newer(path) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "format_version": 99}))


def cut_manifest(path) -> None:
    (path / MANIFEST).write_text((path / MANIFEST).read_text()[:200])


def remove_manifest(path) -> None:
    (path / MANIFEST).unlink()


@pytest.mark.parametrize("verb", [["run", PICTURES[0]], ["inspect"], ["verify"]])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_byte, "weights.bin is not the one that was written"),
        (remove_graph, "sac.onnx is missing"),
        (newer, "format version 99; this release reads up to 2"),
        (cut_manifest, "not valid JSON"),
        (remove_manifest, "has no bundle.json"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bundles_that_cannot_be_used(refused, copied, damage, says, verb):
    damage(copied)
    said = refused(verb[0], copied, *verb[1:])
    assert says in said
    assert str(copied) in said


def test_what_is_no_bundle(refused, tmp_path, sac_checkpoint):
    assert "no such folder" in refused("run", tmp_path / "none", PICTURES[0])
    assert "sacvit-deploy export CHECKPOINT" in refused("run", sac_checkpoint, PICTURES[0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing argument"),
        (["--eta", "high", "cat.jpg"], "not a valid float"),
        (["--backend", "caffe", "cat.jpg"], "'caffe' is not one of"),
    ],
)
def test_wrong_usage(invoke, sac_host, arguments, says):
    ran = invoke("run", sac_host.path, *arguments)
    assert ran.code == 2
    assert says in ran.err


def test_a_precision_can_be_chosen(invoke, refused, sac_host):
    arguments = ("run", sac_host.path, PICTURES[0], "--json", "--precision")
    assert invoke(*arguments, "fp32").out == invoke(*arguments[:-1]).out
    assert "no early_exit graph in int8" in refused(*arguments, "int8")


def test_an_engine_that_is_not_there(refused, sac_host):
    said = refused("run", sac_host.path, PICTURES[0], "--backend", "tensorrt")
    assert "build-engine" in said


def test_pictures_of_any_kind(invoke, sac_host, tmp_path):
    modes = {"RGBA": "png", "L": "png", "P": "png", "CMYK": "jpg", "I;16": "png", "1": "png"}
    paths = []
    for index, (mode, suffix) in enumerate(modes.items()):
        paths.append(tmp_path / f"{index}.{suffix}")
        Image.new(mode, (20 + 30 * index, 90)).save(paths[-1])
    ran = invoke("run", sac_host.path, *paths, "--json")
    assert ran.code == 0
    assert len(json.loads(ran.out)) == len(modes)


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures of the same names in three folders, of which two cannot be read."""
    folder = tmp_path / "photos"
    for number in range(12):
        home = folder / "abc"[number % 3]
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(PICTURES[number % 4], home / f"{number // 3}.jpg")
    (folder / "a" / "0.jpg").write_text("not an image")
    (folder / "c" / "3.jpg").write_text("not an image")
    return folder


def good(photos) -> list[str]:
    files = [str(file) for file in sorted(photos.rglob("*.jpg"))]
    return files[1:-1]


def test_a_folder_into_a_file(invoke, sac_host, photos, tmp_path):
    file = tmp_path / "results.jsonl"
    ran = invoke("run", sac_host.path, photos, "--output", file, "--eta", 1, "--batch-size", 3)
    assert ran.code == 1
    assert ran.err.count("Not read: ") == 2
    assert ran.err.endswith("2 of 12 could not be read.\n")
    assert re.fullmatch(rf"10 pictures, [0-9.]+/s; written to {re.escape(str(file))}\n", ran.out)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["image"] for row in rows] == good(photos)
    with load(sac_host.path) as pipeline:
        wanted = pipeline([row["image"] for row in rows], eta=1)
    assert rows == [json.loads(json.dumps(result.to_dict())) for result in wanted]


def test_a_stopped_run_goes_on(invoke, sac_host, photos, tmp_path):
    files = [str(file) for file in sorted(photos.rglob("*.jpg"))]
    whole, file = tmp_path / "whole.csv", tmp_path / "results.csv"
    invoke("run", sac_host.path, photos, "--output", whole)
    invoke("run", sac_host.path, *files[:5], "--output", file)
    assert "Go on with it: --resume" in invoke("run", sac_host.path, photos, "--output", file).err
    ran = invoke("run", sac_host.path, photos, "--output", file, "--resume")
    assert ran.out.startswith("6 pictures, ")
    assert file.read_bytes() == whole.read_bytes()
    assert invoke("run", sac_host.path, photos, "--output", file, "--resume").out[:2] == "0 "


def test_paths_on_stdin(sac_host, photos):
    command = [sys.executable, "-m", "sacvit_deploy.cli", "run", str(sac_host.path), "-"]
    listed = "\n".join(good(photos)[:3])
    ran = subprocess.run(command, input=listed, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in ran.stdout.splitlines()] == good(photos)[:3]


def test_frames_of_a_video(invoke, sac_host, tmp_path):
    cv2 = pytest.importorskip("cv2", reason="needs the video extra")
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for picture in random_pictures(9):
        writer.write(np.ascontiguousarray(np.asarray(Image.fromarray(picture).resize((64, 48)))))
    writer.release()
    capture = cv2.VideoCapture(str(clip))
    frames = [capture.read()[1] for _ in range(9)]
    ran = invoke("run", sac_host.path, clip, PICTURES[0], "--every", 4, "--json")
    assert ran.code == 0
    found = json.loads(ran.out)
    assert [(row["image"], row.get("frame")) for row in found] == [
        *((str(clip), number) for number in (0, 4, 8)),
        (str(PICTURES[0]), None),
    ]
    with load(sac_host.path) as pipeline:
        wanted = pipeline(frames[::4], channels="bgr")
    assert [row["top5"][0][2] for row in found[:3]] == [result.probability for result in wanted]
    assert f"{clip}:4  " in invoke("run", sac_host.path, clip, "--fps", 2.5).out


def test_several_classes_and_threads(invoke, sac_host):
    ran = invoke("run", sac_host.path, PICTURES[0], "--top", 3, "--threads", 1)
    assert ran.out.count("%, class ") == 2


def test_predict_is_run(invoke, sac_host):
    called = [invoke(verb, sac_host.path, PICTURES[0]) for verb in ("run", "predict")]
    assert called[0] == called[1]
    assert called[0].code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--json", "--output", "r.csv"], "Give one"),
        (["--resume"], "name it with --output"),
        (["rtsp://door/live", "--resume", "--output", "r.csv"], "--resume cannot go on with it"),
    ],
)
def test_options_that_do_not_fit(invoke, sac_host, arguments, says):
    ran = invoke("run", sac_host.path, PICTURES[0], *arguments)
    assert ran.code == 2
    assert says in ran.err


def test_a_closed_stdin_is_no_fault(sac_host):
    command = [sys.executable, "-m", "sacvit_deploy", "run", str(sac_host.path), str(PICTURES[0])]
    quoted = " ".join(map(shlex.quote, command))
    ran = subprocess.run(["sh", "-c", f"{quoted} <&-"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(str(PICTURES[0]))


def test_a_bundle_behind_its_picture_is_told_as_no_bundle(refused, sac_host):
    said = refused("run", sample_pictures()[0], sac_host.path)
    assert "This is a file, not a folder." in said
