from __future__ import annotations

import json
import struct
import zlib

import pytest
from PIL import Image

from sacvit_deploy.manifest import MANIFEST
from sacvit_deploy.runtime.load import load
from sacvit_deploy.samples import sample_pictures

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
        assert line.startswith(picture.name)
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


def test_pictures_that_cannot_be_used(refused, sac_host, tmp_path):
    for name, says in bad_pictures(tmp_path).items():
        said = refused("run", sac_host.path, PICTURES[0], tmp_path / name)
        assert says in said, name
        assert name in said
        assert says in refused("run", sac_host.path, tmp_path / name, "--json")


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
