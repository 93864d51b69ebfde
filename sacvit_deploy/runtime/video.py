"""Frames of videos, cameras and network streams, read by OpenCV."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
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
    """

    number: int
    pixels: NDArray[np.uint8]
    rate: float


def frames_of_video(
    source: str, pace: Pace, clock: Callable[[], float] = time.monotonic
) -> Iterator[VideoFrame]:
    """Read a video to its end, or a camera for ever.

    The frames of a file are taken by its own time, those of a camera or a stream by the clock.

    Args:
        source: Path, URL, or the number of a camera.
        pace: Frames to take.
        clock: Current time in seconds.

    Yields:
        The frames that are taken, in order.

    Raises:
        ImageError: It cannot be opened, or has no frame.
        MissingDependencyError: OpenCV is not installed.
    """
    cv2 = require("cv2", "Reading a video or a camera")
    is_file = os.path.exists(source)
    with closing(_Capture(cv2, source)) as capture:
        told = capture.frames_per_second
        rate = told if is_file else None
        taken = min(pace.fps or math.inf, (told or _USUAL_RATE) / pace.every)
        number, step, due = -1, 1 / (pace.fps or math.inf), -math.inf
        while (frame := capture.read()) is not None:
            number += 1
            if number % pace.every:
                continue
            now = number / rate if rate else clock()
            if now + _SAME_TIME >= due:
                due = now + step if due < 0 else max(due + step, now)
                yield VideoFrame(number, frame, taken)
        if number < 0:
            raise ImageError(f"The video {source!r} has no frame that can be read.", _FIX)


_FIX = "Check that it plays, or convert it: ffmpeg -i VIDEO -c:v libx264 copy.mp4"


class _Capture:
    """An open video."""

    def __init__(self, cv2: Any, source: str) -> None:
        self._cv2 = cv2
        is_camera = source.isdecimal() and not os.path.exists(source)
        self._capture = cv2.VideoCapture(int(source) if is_camera else source)
        if not self._capture.isOpened():
            kind = "camera" if is_camera else "video"
            missing = not is_camera and "://" not in source and not os.path.exists(source)
            reason = "does not exist" if missing else "cannot be opened"
            fix = "Check the path." if missing else "Check its number." if is_camera else _FIX
            raise ImageError(f"The {kind} {source!r} {reason}.", fix)

    @property
    def frames_per_second(self) -> float | None:
        """As the video says; None if it does not."""
        rate = float(self._capture.get(self._cv2.CAP_PROP_FPS))
        return rate if 0 < rate <= _FREQUENT else None

    def read(self) -> NDArray[np.uint8] | None:
        """The next frame; None after the last."""
        is_read, frame = self._capture.read()
        return frame if is_read else None

    def close(self) -> None:
        """Let go of the video."""
        self._capture.release()
