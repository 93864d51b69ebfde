from __future__ import annotations

import numpy as np
import pytest

from sacvit_deploy.errors import ConfigError, ImageError
from sacvit_deploy.runtime.video import Pace, frames_of_video

cv2 = pytest.importorskip("cv2", reason="needs the video extra")

SIZE = (64, 48)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of 30 frames, 10 a second, whose red rises from frame to frame."""
    path = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, SIZE)
    assert writer.isOpened()
    for number in range(30):
        frame = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        frame[..., 2] = 8 * number
        writer.write(frame)
    writer.release()
    return str(path)


def numbers(clip, *pace, clock=lambda: 0.0):
    return [frame.number for frame in frames_of_video(clip, Pace(*pace), clock)]


def test_all_frames_in_order_in_bgr(clip):
    found = list(frames_of_video(clip, Pace()))
    assert [frame.number for frame in found] == list(range(30))
    for number, frame, rate in found:
        assert rate == 10
        assert frame.shape == (SIZE[1], SIZE[0], 3)
        assert frame.dtype == np.uint8
        assert abs(int(np.median(frame[..., 2])) - 8 * number) <= 4
        assert np.median(frame[..., 0]) <= 8


@pytest.mark.parametrize(("pace", "rate"), [((2,), 5), ((1, 4), 4), ((4, 4), 2.5)])
def test_the_rate_of_what_is_taken(clip, pace, rate):
    assert next(frames_of_video(clip, Pace(*pace))).rate == rate


def test_every_third(clip):
    assert numbers(clip, 3) == list(range(0, 30, 3))


@pytest.mark.parametrize(
    ("fps", "wanted"),
    [
        (5, list(range(0, 30, 2))),
        (2.5, list(range(0, 30, 4))),
        (4, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28]),
        (100, list(range(30))),
    ],
)
def test_frames_per_second_of_the_video(clip, fps, wanted):
    assert numbers(clip, 1, fps) == wanted


def test_both(clip):
    assert numbers(clip, 3, 2.5) == [0, 6, 9, 12, 18, 21, 24]


class Camera:
    """What OpenCV does with a camera: endless frames."""

    CAP_PROP_FPS = 5

    def __init__(self) -> None:
        self.left = 40
        self.is_released = False

    def VideoCapture(self, source):  # noqa: N802
        assert source == 3
        return self

    def isOpened(self):  # noqa: N802
        return True

    def read(self):
        self.left -= 1
        return self.left >= 0, np.zeros((2, 2, 3), np.uint8)

    def get(self, _):
        return 0.0  # a camera that does not tell

    def release(self):
        self.is_released = True


def test_a_camera_is_taken_by_the_clock(monkeypatch):
    camera = Camera()
    monkeypatch.setattr("sacvit_deploy.runtime.video.require", lambda *_: camera)
    times = iter(np.arange(1000, 1004, 0.1).tolist())  # 10 frames a second
    found = numbers("3", 1, 2, clock=lambda: next(times))
    assert found == list(range(0, 40, 5))
    assert camera.is_released


def test_what_is_no_video(tmp_path):
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(ImageError, match=r"text\.mp4' cannot be opened"):
        numbers(str(tmp_path / "text.mp4"))
    with pytest.raises(ImageError, match=r"none\.mp4' does not exist"):
        numbers(str(tmp_path / "none.mp4"))
    with pytest.raises(ImageError, match="camera '71' cannot be opened"):
        numbers("71")


@pytest.mark.parametrize("pace", [(0,), (1.5,), (True,), (1, 0), (1, -2.0), (1, float("nan"))])
def test_a_pace_out_of_range(pace):
    with pytest.raises(ConfigError, match=r"every|fps"):
        Pace(*pace)
