from __future__ import annotations

import json

import pytest

from sacvit_deploy.exporters.precision.bisect import Bisection
from sacvit_deploy.exporters.precision.request import read_keep
from sacvit_deploy.records import Agreement


def test_bisection_writes_a_list_that_export_takes(invoke, sac_host, table, tmp_path):
    file = tmp_path / "keep.txt"
    ran = invoke(
        *(
            "bisect-precision",
            sac_host.path,
            table,
            "--precision",
            "fp16",
            "-o",
            file,
            "--json",
        )
    )
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["precision"] == "fp16"
    assert found["trials"] >= 1
    assert found["agreement"]["images"] == 4
    keep = [entry["node"] for entry in found["keep"]]
    assert list(read_keep([str(file)])) == keep
    again = ("--precision", "fp16", "-o", file, *(f"--keep-float={name}" for name in keep))
    text = invoke("bisect-precision", sac_host.path, table, *again)
    assert "To stay in FP32: 0 nodes, found in 1 trial:" in text.out


def test_where_a_list_cannot_be_written_nothing_is_sought(refused, sac_host, table, tmp_path):
    file = tmp_path / "no folder" / "keep.txt"
    call = ("bisect-precision", sac_host.path, table, "--precision", "fp16", "-o", file)
    assert "cannot be written" in refused(*call)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_list_that_cannot_be_written_after_all_is_shown(
    invoke, sac_host, table, tmp_path, monkeypatch, as_json
):
    file = tmp_path / "keep.txt"

    def found(*_: object) -> Bisection:
        file.mkdir()
        return Bisection(("refine:matmul",), ("head",), Agreement(4, 0.0, 1.0, 1.0, 0.0), 3)

    monkeypatch.setattr("sacvit_deploy.exporters.precision.bisect.bisect_precision", found)
    call = ("bisect-precision", sac_host.path, table, "--precision", "fp16", "-o", file)
    ran = invoke(*call, *(["--json"] if as_json else []))
    assert ran.code == 1
    assert "refine:matmul" in ran.out
    assert "cannot be written" in ran.err


def test_threads_have_the_bounds_of_other_verbs(refused, sac_host, table, tmp_path):
    call = ("bisect-precision", sac_host.path, table, "-o", tmp_path / "k", "--precision", "fp16")
    assert "Ask for a whole number from 1 to 1024." in refused(*call, "--threads", 0)
