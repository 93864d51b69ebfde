from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.runtime.result import Result
from sacvit_deploy.runtime.sources import Frame
from sacvit_deploy.visualize.annotate import Annotator, annotated
from tests.fakes import SAC, fake_manifest, fake_opened

SIZE = (320, 240)
TARGET, SEEN = (245, 158, 11), (255, 255, 255)


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline(fake_manifest(), fake_opened(SAC))


def result(*targets: int) -> Result:
    best = ((1, "tabby cat", 0.5),)
    early = Result("a.jpg", 1, "tabby cat", 0.5, "early_exit", 0.4, best)
    return dataclasses.replace(early, stage="refine", target_tokens=targets) if targets else early


def grey(value: int = 100) -> Image.Image:
    return Image.new("RGB", SIZE, (value,) * 3)


def places(drawn: Image.Image, colour) -> np.ndarray:
    """(y, x) of all pixels of a colour on the picture."""
    pixels = np.asarray(drawn)[: SIZE[1]]
    return np.argwhere((pixels == colour).all(axis=-1))


def test_target_tokens_are_outlined_where_they_are(pipeline):
    rows, columns = pipeline.manifest.config.coarse_grid
    left, top, right, bottom = pipeline.preprocess.crop_box(*SIZE)
    token = columns + 2
    found = places(annotated(grey(), result(token), pipeline), TARGET)
    high, wide = (bottom - top) / rows, (right - left) / columns
    box = [top + high, left + 2 * wide, top + 2 * high - 1, left + 3 * wide - 1]
    assert np.allclose([*found.min(axis=0), *found.max(axis=0)], box, atol=1)
    inside = (found > found.min(axis=0) + 3) & (found < found.max(axis=0) - 3)
    assert not inside.all(axis=1).any(), "it is an outline"
    assert not len(places(annotated(grey(), result(), pipeline), TARGET))


def test_words_stand_below_and_the_picture_is_not_changed(pipeline):
    picture = grey()
    drawn = annotated(picture, result(), pipeline)
    assert drawn.width == SIZE[0]
    assert drawn.height > SIZE[1]
    strip = np.asarray(drawn)[SIZE[1] :]
    assert (strip == 255).any()
    assert picture == grey()
    other = annotated(picture, dataclasses.replace(result(), label="dog"), pipeline)
    assert (np.asarray(other)[SIZE[1] :] != strip).any()


def test_pictures_keep_their_places_below_the_folder(pipeline, tmp_path):
    names = ["/x/a/1.jpg", "b/1.jpg", "../c/1.png", "set.zip/val/1.webp", "d/2.JPEG"]
    with Annotator(tmp_path / "out", pipeline) as copies:
        for name in names:
            copies.add(Frame(name, grey()), result(0))
    found = {file.relative_to(tmp_path / "out").as_posix() for file in tmp_path.rglob("*.*")}
    wanted = {"x/a/1.jpg", "b/1.jpg", "c/1.png", "set.zip/val/1.webp.jpg", "d/2.JPEG"}
    assert found - {"set.zip"} == wanted
    with Image.open(tmp_path / "out" / "c" / "1.png") as written:
        assert written.format == "PNG"
        assert places(written, TARGET).size


def test_frames_of_two_videos(pipeline, tmp_path):
    cv2 = pytest.importorskip("cv2", reason="needs the video extra")
    with Annotator(tmp_path, pipeline) as copies:
        for number in range(6):
            pixels = np.full((SIZE[1] + 1, SIZE[0] + 1, 3), (40 * number, 0, 0), np.uint8)
            copies.add(Frame("a/clip.avi", pixels, number, 5.0), result())
        assert not (tmp_path / "a" / "clip.avi.mp4").exists()
        copies.add(Frame("rtsp://camera:1/x", np.zeros((20, 20, 3), np.uint8), 0, 5.0), result())
        assert (tmp_path / "a" / "clip.avi.mp4").exists()
    capture = cv2.VideoCapture(str(tmp_path / "a" / "clip.avi.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == 5
    blue = []
    while (read := capture.read())[0]:
        assert read[1].shape[1] == SIZE[0]
        blue.append(int(np.median(read[1][: SIZE[1] // 2, ..., 0])))
    assert len(blue) == 6
    assert blue == sorted(blue)
    assert abs(blue[5] - 200) < 12, "colours stay as they were"
    found = {
        file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()
    }
    assert found == {"a/clip.avi.mp4", "camera_1/x.mp4"}


def test_a_video_is_complete_after_an_error(pipeline, tmp_path):
    pytest.importorskip("cv2", reason="needs the video extra")
    frame = Frame("0", np.zeros((64, 64, 3), np.uint8), 0, 25.0)

    def film() -> None:
        with Annotator(tmp_path, pipeline) as copies:
            copies.add(frame, result())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        film()
    assert [file.name for file in tmp_path.iterdir()] == ["0.mp4"]


def test_a_folder_that_cannot_be_made(pipeline, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file cannot be written"):
        Annotator(tmp_path / "file", pipeline)
