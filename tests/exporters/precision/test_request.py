from __future__ import annotations

import shutil

from sacvit_deploy.exporters.precision.request import PrecisionRequest, chosen_pictures


def test_frames_of_a_camera_need_no_class_folders(pictures, tmp_path):
    for file in pictures.rglob("*.png"):
        shutil.copy(file, tmp_path / file.name)
    found = chosen_pictures(PrecisionRequest("int8", tmp_path, samples=5))
    assert len(found.sources) == 5
    assert found.name == tmp_path.name
    assert found.sha256
