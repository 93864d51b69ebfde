from __future__ import annotations

import threading

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
    for number, frame, rate, share in found:
        assert share == (number + 1) / 30
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
    """What OpenCV does with a camera or a stream; `arrive` lets its next frames come.

    The frames have their number in their first pixel. After `length` of them it fails.
    """

    CAP_PROP_FPS, CAP_PROP_FRAME_COUNT = 5, 7

    def __init__(self, length, source=3, frame_count=-1.0) -> None:
        self.length, self.source, self.frame_count = length, source, frame_count
        self.next = 0
        self.is_released = threading.Event()
        self.arrived, self.asked = threading.Semaphore(0), threading.Semaphore(0)

    def first(self, frames):
        """Let the first frame come, and wait until the reader asks for the second."""
        self.arrived.release()
        frame = next(frames)
        assert self.asked.acquire(timeout=10)
        assert self.asked.acquire(timeout=10)
        return frame

    def arrive(self, count):
        """Let more frames come, and wait until the reader asks for the one behind them."""
        for _ in range(count):
            self.arrived.release()
            assert self.asked.acquire(timeout=10)

    def VideoCapture(self, source):  # noqa: N802
        assert source == self.source
        return self

    def isOpened(self):  # noqa: N802
        return True

    def grab(self):
        self.asked.release()
        assert self.arrived.acquire(timeout=10)
        self.next += 1
        return self.next <= self.length

    def read(self):
        return self.grab(), np.full((2, 2, 3), self.next - 1, np.uint8)

    def get(self, what):
        return self.frame_count if what == self.CAP_PROP_FRAME_COUNT else 0.0

    def release(self):
        self.is_released.set()


@pytest.fixture
def camera(monkeypatch):
    def make(*args):
        made = Camera(*args)
        monkeypatch.setattr("sacvit_deploy.runtime.video.require", lambda *_: made)
        return made

    return make


def test_a_camera_gives_the_newest_frame_and_drops_the_others(camera):
    live = camera(1_000_000)
    frames = frames_of_video("3", Pace())
    assert live.first(frames).number == 0
    live.arrive(7)  # while the network computes
    number, pixels, *_ = next(frames)
    assert (number, pixels[0, 0, 0]) == (7, 7)
    live.arrived.release(1_000_000)
    frames.close()
    assert live.is_released.is_set()  # another may open it at once


def test_each_third_frame_of_a_camera(camera):
    live = camera(100)
    frames = frames_of_video("3", Pace(3))
    assert live.first(frames).number == 0
    live.arrive(8)
    assert next(frames).number == 6
    live.arrived.release(100)
    frames.close()


def test_frames_per_second_of_a_camera_are_by_the_clock(camera):
    live = camera(40)
    times = iter(np.arange(1000, 1004, 0.1).tolist())

    def clock():  # a frame comes when the one before was looked at: 10 a second
        live.arrived.release()
        return next(times)

    live.arrived.release()
    found: list[int] = []
    with pytest.raises(ImageError, match="camera '3' ended after 40 frames"):
        found.extend(frame.number for frame in frames_of_video("3", Pace(1, 2), clock))
    assert found == list(range(0, 40, 5))
    assert live.is_released.wait(10)


def test_a_stream_that_fails_is_told_without_its_password(camera):
    live = camera(2, "rtsp://me:secret@door/live")
    for _ in range(3):
        live.arrived.release()
    with pytest.raises(ImageError) as told:
        list(frames_of_video("rtsp://me:secret@door/live", Pace()))
    assert "stream 'rtsp://door/live' ended after 2 frames" in str(told.value)


def test_a_video_behind_a_url_is_read_whole(camera):
    live = camera(5, "https://site/clip.mp4", 5.0)
    for _ in range(6):
        live.arrived.release()
    assert numbers("https://site/clip.mp4") == [0, 1, 2, 3, 4]
    assert live.is_released.is_set()


def test_an_error_of_opencv_comes_through(camera):
    live = camera(5)
    live.grab = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        numbers("3")


def test_a_camera_that_cannot_be_released_ends_too(camera, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda told: None)
    live = camera(1)
    live.arrived.release(2)
    live.release = lambda: 1 / 0
    with pytest.raises(ImageError, match=r"camera '3' ended after 1 frame\."):
        numbers("3")


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
