"""FP16 and INT8 on the command line."""

from __future__ import annotations

import json
import shutil

import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.comparison.decisions import Agreement
from sacvit_deploy.exporters.precision.bisect import Bisection
from sacvit_deploy.exporters.precision.request import read_keep
from sacvit_deploy.samples import sample_pictures


@pytest.fixture
def data(tmp_path):
    """The pictures of the package as a table."""
    file = tmp_path / "data.csv"
    for picture in sample_pictures():
        shutil.copy(picture, tmp_path)
    file.write_text("path,label\n" + "".join(f"{p.name},thing\n" for p in sample_pictures()))
    return file


@pytest.mark.parametrize("how", [["--precision", "fp16"], ["--precision", "fp32,fp16"]])
def test_a_precision_is_written_beside_fp32(how, invoke, sac_checkpoint, translated, tmp_path):
    path = tmp_path / "bundle"
    ran = invoke("export", sac_checkpoint, "-o", path, *how)
    assert ran.code == 0, ran
    assert f"{path}: ee.onnx, sac.onnx, ee.fp16.onnx, sac.fp16.onnx\n" in ran.out
    assert "fp16 against fp32 on 32 pictures: " in ran.out
    assert ran.err == ""
    assert Bundle.open(path).manifest.precisions.keys() == {"fp16"}


def test_few_pictures_are_called_few(invoke, data, tmp_path):
    arguments = ("--random-weights", "--preset", "demo_patch8_64", "--precision", "int8")
    ran = invoke("export", *arguments, "-o", tmp_path / "bundle", "--calibration-data", data)
    assert ran.code == 0, ran
    assert "4 pictures are few to calibrate INT8 on" in ran.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--precision", "int8"], "--calibration-data"),
        (["--precision", "bf16"], "fp16 or int8"),
        (["--precision", "fp16", "--keep-float", "nowhere"], "no graph of early_exit, refine"),
        (["--precision", "int8", "--calibration-data", "nowhere"], "does not exist"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(
    arguments, says, invoke, sac_checkpoint, translated, tmp_path
):
    ran = invoke("export", sac_checkpoint, "-o", tmp_path / "bundle", *arguments)
    assert ran.code == 1
    assert says in ran.err
    assert list(tmp_path.iterdir()) == []


def test_bisection_writes_a_list_that_export_takes(invoke, sac_host, data, tmp_path):
    file = tmp_path / "keep.txt"
    ran = invoke(
        *("bisect-precision", sac_host.path, data, "--precision", "fp16", "-o", file, "--json")
    )
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["precision"] == "fp16"
    assert found["trials"] >= 1
    assert found["agreement"]["images"] == 4
    keep = [entry["node"] for entry in found["keep"]]
    assert list(read_keep([str(file)])) == keep
    again = ("--precision", "fp16", "-o", file, *(f"--keep-float={name}" for name in keep))
    text = invoke("bisect-precision", sac_host.path, data, *again)
    assert "0 nodes have to stay in FP32" in text.out


def test_where_a_list_cannot_be_written_nothing_is_sought(refused, sac_host, data, tmp_path):
    file = tmp_path / "no folder" / "keep.txt"
    call = ("bisect-precision", sac_host.path, data, "--precision", "fp16", "-o", file)
    assert "cannot be written" in refused(*call)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_list_that_cannot_be_written_after_all_is_shown(
    invoke, sac_host, data, tmp_path, monkeypatch, as_json
):
    file = tmp_path / "keep.txt"

    def found(*_: object) -> Bisection:
        file.mkdir()
        return Bisection(("refine:matmul",), ("head",), Agreement(4, 0.0, 1.0, 1.0, 0.0), 3)

    monkeypatch.setattr("sacvit_deploy.exporters.precision.bisect.bisect_precision", found)
    call = ("bisect-precision", sac_host.path, data, "--precision", "fp16", "-o", file)
    ran = invoke(*call, *(["--json"] if as_json else []))
    assert ran.code == 1
    assert "refine:matmul" in ran.out
    assert "cannot be written" in ran.err
