from __future__ import annotations

import shutil

import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.exporters.precision.request import PrecisionRequest, chosen_pictures, read_keep
from tests.exporters.precision.conftest import PICTURES


def test_frames_of_a_camera_need_no_class_folders(pictures, tmp_path):
    for file in pictures.rglob("*.png"):
        shutil.copy(file, tmp_path / file.name)
    found = chosen_pictures(PrecisionRequest("int8", tmp_path, samples=5))
    assert len(found.sources) == 5
    assert found.name == tmp_path.name
    assert found.sha256


def test_another_seed_takes_other_pictures(pictures):
    sets = [
        chosen_pictures(PrecisionRequest("int8", pictures, samples=5, seed=seed))
        for seed in (0, 0, 1)
    ]
    assert sets[0] == sets[1]
    assert sets[0].sha256 != sets[2].sha256
    assert len(set(map(str, sets[0].sources))) == 5
    everything = chosen_pictures(PrecisionRequest("int8", pictures))
    assert len(everything.sources) == PICTURES


def test_a_name_of_any_length_is_no_file():
    assert read_keep(["x" * 5_000]) == ("x" * 5_000,)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"precision": "int8"}, "--calibration-data"),
        ({"precision": "bf16"}, "fp16 or int8"),
        ({"precision": "fp16", "method": "magic"}, "minmax or percentile or entropy"),
        ({"precision": "fp16", "samples": 0}, "at least one"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(fields, says):
    with pytest.raises(ConfigError, match=says):
        PrecisionRequest(**fields)


def test_keep_lists_come_from_names_and_files(tmp_path):
    file = tmp_path / "keep.txt"
    file.write_text("# found by hand\nrefine:a  # blocks.0\n\nhead\n")
    assert read_keep([str(file), "b", "head"]) == ("refine:a", "head", "b")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"keep\.txt"):
        read_keep([str(file)])
