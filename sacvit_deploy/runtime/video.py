"""Frames of videos, cameras and network streams, read by OpenCV."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.decode import check_field
from sacvit_deploy.errors import ImageError
from sacvit_deploy.libraries import require
from sacvit_deploy.spec import as_number, check_count

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"}
)
"""File name suffixes of videos, in lower case."""

_FREQUENT = 1000.0  # frames a second that no video claims in earnest
_USUAL_RATE = 25.0
_LONGEST_READ_S = 2.0  # of a live frame, at the end
_SAME_TIME = 1e-6  # seconds by which a frame may come early


@dataclass(frozen=True)
class Pace:
    """Which frames to take of a video or a camera.

    Attributes:
        every: Take each frame whose number is a multiple of this, 1 or more.
        fps: Take at most so many frames a second, above 0; None takes all.

    Raises:
        ConfigError: A value is out of range.
    """

    every: int = 1
    fps: float | None = None

    def __post_init__(self) -> None:
        check_count("every", self.every)
        fits = self.fps is None or as_number(self.fps) > 0
        check_field(fits, "fps", self.fps, "a number of frames a second, above 0")


class VideoFrame(NamedTuple):
    """One frame of a video.

    Attributes:
        number: Position in the video, from 0; frames that are not taken count too.
        pixels: (H, W, 3), uint8, BGR.
        rate: Frames taken in a second of the video, about; 25 where nothing tells it.
        share: Share of the video up to this frame, in [0, 1]; 0 if its length is not known.
    """

    number: int
    pixels: NDArray[np.uint8]
    rate: float
    share: float = 0.0


def frames_of_video(
    source: str, pace: Pace, clock: Callable[[], float] = time.monotonic
) -> Generator[VideoFrame]:
    """Read a video to its end, or a camera or a network stream until it fails.

    The frames of a video are taken by its own time. Those of a camera or a stream are taken by the
    clock, and what comes while the caller is busy is dropped: the next frame is always the newest.

    Args:
        source: Path, URL, or the number of a camera.
        pace: Frames to take.
        clock: Current time in seconds.

    Yields:
        The frames that are taken, in order.

    Raises:
        ImageError: It cannot be opened, or has no frame; or a camera or a stream has ended.
        MissingDependencyError: OpenCV is not installed.
    """
    cv2 = require("cv2", "Reading a video or a camera")
    capture = _Capture(cv2, source, pace.every)
    told, is_live = capture.frames_per_second, capture.is_live
    with closing(_Newest(capture) if is_live else capture) as reader:
        rate = None if is_live else told or _USUAL_RATE
        taken = min(pace.fps or math.inf, (told or _USUAL_RATE) / pace.every)
        step, due = 1 / (pace.fps or math.inf), -math.inf
        while (read := reader.read()) is not None:
            number, pixels = read
            now = number / rate if rate else clock()
            if now + _SAME_TIME >= due:
                due = now + step if due < 0 else max(due + step, now)
                share = min(1.0, (number + 1) / capture.length) if capture.length else 0.0
                yield VideoFrame(number, pixels, taken, share)
        if not capture.frames:
            raise ImageError(f"The {capture.name} has no frame that can be read.", capture.fix)
        if is_live:
            count = f"{capture.frames} frame{'s' * (capture.frames != 1)}"
            raise ImageError(f"The {capture.name} ended after {count}.", capture.fix)


def public_name(source: str) -> str:
    """Return a source as it may be shown: a URL without user and password."""
    return re.sub(r"(?<=://)[^/@]*@", "", source)


_Read = tuple[int, NDArray[np.uint8]]
"""Number of a frame, from 0, and its pixels."""


class _Capture:
    """An open video.

    Attributes:
        name: What it is, and its name, for messages.
        fix: What to do where it fails.
        length: Number of its frames, about; None if it is not known, as of a camera.
        is_live: Whether it is a camera or a stream without an end.
        frames_per_second: Frame rate that the video gives; None if it gives none.
        frames: Number of frames that it gave, with those between the ones that are taken.
    """

    def __init__(self, cv2: Any, source: str, every: int) -> None:
        is_file = os.path.exists(source)
        is_camera = source.isdecimal() and not is_file
        is_stream = "://" in source and not is_file
        kind = "camera" if is_camera else "stream" if is_stream else "video"
        self.name = f"{kind} {public_name(source)!r}"
        self.fix = _FIXES[kind]
        self.frames = 0
        self._every = every
        self._capture = cv2.VideoCapture(int(source) if is_camera else source)
        if not self._capture.isOpened():
            is_missing = kind == "video" and not is_file
            reason = "does not exist" if is_missing else "cannot be opened"
            raise ImageError(
                f"The {self.name} {reason}.", "Check the path." if is_missing else self.fix
            )
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.frames_per_second = rate if 0 < rate <= _FREQUENT else None
        length = float(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = length if 0 < length < math.inf else None
        self.is_live = not is_file and self.length is None

    def read(self) -> _Read | None:
        """The next frame whose number is a multiple of `every`; None after the last."""
        while self.frames % self._every:
            if not self._capture.grab():
                return None
            self.frames += 1
        is_read, pixels = self._capture.read()
        if not is_read:
            return None
        self.frames += 1
        return self.frames - 1, pixels

    def close(self) -> None:
        """Let go of the video."""
        self._capture.release()


_FIXES = {
    "video": "Check that it plays, or convert it: ffmpeg -i VIDEO -c:v libx264 copy.mp4",
    "camera": "Check its number, its cable, and that no other program uses it.",
    "stream": "Check the URL and the network: ffplay URL",
}


class _Newest:
    """Reads a live video in a thread, and keeps the newest frame alone."""

    def __init__(self, capture: _Capture) -> None:
        self._capture = capture
        self._changed = threading.Condition()
        self._newest: _Read | None = None
        self._failure: BaseException | None = None
        self._has_ended = self._is_closed = False
        # A daemon: a read of a stream that hangs ends after OpenCV's own time, not before.
        self._thread = threading.Thread(target=self._read_all, name="sacvit-video", daemon=True)
        self._thread.start()

    def read(self) -> _Read | None:
        """Wait for a frame that was not given yet; None after the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._has_ended)
            read, self._newest = self._newest, None
            if read is None and self._failure is not None:
                raise self._failure
            return read

    def close(self) -> None:
        """Let go of the video after the frame that is being read, or leave it to the thread."""
        self._is_closed = True
        self._thread.join(_LONGEST_READ_S)

    def _read_all(self) -> None:
        try:
            while not self._is_closed and (read := self._capture.read()) is not None:
                with self._changed:
                    self._newest = read
                    self._changed.notify()
        except Exception as error:
            self._failure = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify()
            self._capture.close()
