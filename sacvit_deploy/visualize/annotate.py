"""Pictures and videos with what the network says of them, drawn on the pixels themselves."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sacvit_deploy.errors import ConfigError, raised_as
from sacvit_deploy.files import own_folder, write_output
from sacvit_deploy.libraries import require
from sacvit_deploy.runtime.pictures import in_rgb, read_picture
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.runtime.result import Result
from sacvit_deploy.runtime.sources import Frame

_TARGET, _SEEN, _STRIP, _INK = (245, 158, 11), (255, 255, 255), (24, 24, 27), (255, 255, 255)
_QUALITY = 90
_KEPT_SUFFIXES = (".jpg", ".jpeg", ".png")
_OF_STAGE = {"early_exit": "early exit", "refine": "refined", "single": ""}


def annotated(picture: Image.Image, result: Result, pipeline: Pipeline) -> Image.Image:
    """Draw the class, its probability and its stage below a picture, and its target tokens on it.

    A thin line shows the part of the picture that the network sees.

    Args:
        picture: RGB, (width, height); it is not changed.
        result: What the pipeline says of it.
        pipeline: Tells where the tokens are.

    Returns:
        RGB, of the same width, and higher by the strip with the words.
    """
    width, height = picture.size
    text = max(12, round(min(width, height) / 22))
    strip = round(1.8 * text)
    drawn = Image.new("RGB", (width, height + strip), _STRIP)
    drawn.paste(picture)
    draw = ImageDraw.Draw(drawn)
    line = max(1, round(min(width, height) / 240))
    left, top, right, bottom = pipeline.preprocess.crop_box(width, height)
    if (left, top) != (0, 0):
        draw.rectangle((left, top, right - 1, bottom - 1), outline=_SEEN, width=max(1, line // 2))
    if result.target_tokens:
        rows, columns = pipeline.manifest.config.coarse_grid
        high, wide = (bottom - top) / rows, (right - left) / columns
        for token in result.target_tokens:
            row, column = divmod(token, columns)
            x, y = left + column * wide, top + row * high
            draw.rectangle((x, y, x + wide - 1, y + high - 1), outline=_TARGET, width=line)
    words = f"{result.label}  {result.probability:.0%}  {_OF_STAGE[result.stage]}"
    font = ImageFont.load_default(text)
    draw.text((text // 2, height + strip / 2), words.strip(), _INK, font, anchor="lm")
    return drawn


class Annotator:
    """Writes annotated copies below a folder: pictures one by one, the frames of a video as one.

    A context manager. The video is complete when the block ends, with an error too, or when a
    frame of another one comes.
    """

    def __init__(self, folder: Path, pipeline: Pipeline) -> None:
        """Make the folder; `ConfigError` if it cannot be made."""
        self._folder, self._pipeline = folder, pipeline
        self._in_rgb = in_rgb("bgr")
        self._video = contextlib.ExitStack()
        self._name: str | None = None
        self._add: Callable[[Image.Image], None]
        with _cannot_be_written(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Annotator:
        return self

    def __exit__(self, *_: object) -> None:
        self._video.close()

    def add(self, frame: Frame, result: Result) -> None:
        """Write one picture, or add one frame to its video.

        Raises:
            ConfigError: It cannot be written.
            ImageError: The picture cannot be read any more.
        """
        picture = read_picture(self._in_rgb(frame.picture))
        drawn = annotated(picture, result, self._pipeline)
        if frame.number is None:
            self._write_picture(self._target(frame.name, _KEPT_SUFFIXES, ".jpg"), drawn)
            return
        if frame.name != self._name:
            self._video.close()
            target = self._target(frame.name, (".mp4",), ".mp4")
            self._add = self._video.enter_context(video_writer(target, drawn.size, frame.rate))
            self._name = frame.name
        self._add(drawn)

    def _target(self, name: str, kept: tuple[str, ...], suffix: str) -> Path:
        """Where a copy goes: the path of the original below the folder."""
        path = PurePath(re.sub(r"^[a-z]+://", "", name))
        parts = [re.sub(r'[?*:"<>|]', "_", part) for part in path.parts if part not in ("..", "/")]
        target = self._folder.joinpath(*parts)
        if target.suffix.lower() not in kept:
            target = target.with_name(target.name + suffix)
        with _cannot_be_written(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _write_picture(self, target: Path, drawn: Image.Image) -> None:
        content = io.BytesIO()
        drawn.save(content, "PNG" if target.suffix.lower() == ".png" else "JPEG", quality=_QUALITY)
        write_output(target, content.getvalue())


@contextlib.contextmanager
def video_writer(
    target: Path, size: tuple[int, int], rate: float
) -> Iterator[Callable[[Image.Image], None]]:
    """Write a video, MPEG-4 in an .mp4 file; it takes its place when the block ends.

    Args:
        target: The file.
        size: (width, height) of its frames in pixels; an odd one loses its last row or column.
        rate: Frames a second.

    Yields:
        The function that adds a frame of that size.

    Raises:
        ConfigError: It cannot be written.
    """
    cv2 = require("cv2", "Writing a video")
    even = size[0] // 2 * 2, size[1] // 2 * 2
    with _cannot_be_written(target), own_folder(target.parent, target.name) as folder:
        unfinished = folder / target.name
        code = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(unfinished), code, rate, even)
        if not writer.isOpened():
            raise OSError("OpenCV has no encoder for it")

        def add(frame: Image.Image) -> None:
            shown = frame if frame.size == size else frame.resize(size)
            pixels = np.asarray(shown.crop((0, 0, *even)))
            writer.write(np.ascontiguousarray(pixels[..., ::-1]))

        try:
            yield add
        finally:
            writer.release()
            os.replace(unfinished, target)


def _cannot_be_written(path: Path) -> contextlib.AbstractContextManager[None]:
    fix = "Choose another folder, which can be written to."
    return raised_as(ConfigError, f"{path} cannot be written", fix)
