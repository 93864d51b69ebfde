"""What `run` classifies: pictures, folders, patterns, data sets, lists, videos and cameras."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from sacvit_deploy.errors import DataError, ImageError
from sacvit_deploy.runtime.pictures import PictureSource
from sacvit_deploy.runtime.video import VIDEO_SUFFIXES, Pace, frames_of_video, public_name
from sacvit_deploy.samples import SUFFIXES, Sample, read_samples

_ARCHIVES = frozenset({".zip", ".csv", ".jsonl"})
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_LIST = "-"


@dataclass(frozen=True)
class Frame:
    """One picture to classify.

    Attributes:
        name: Path as it was given, with the path below it; or the name of the video or camera,
            without a password.
        picture: The picture, not read yet; an array of a video is in BGR.
        number: Position in its video, from 0; None for a picture that is a file.
        rate: Frames taken in a second of its video; 0 for a picture that is a file.
        share: Share of all sources up to this picture, in [0, 1], each source counting the same;
            of a list or a camera, whose length is not known, that of the sources before it.
    """

    name: str
    picture: PictureSource
    number: int | None = None
    rate: float = 0.0
    share: float = 0.0


@dataclass(frozen=True)
class Sources:
    """Pictures of several sources.

    Attributes:
        names: Names of the pictures, in order; None if they are not all known before.
        is_live: Whether one of the sources is a camera or a network stream.
    """

    names: tuple[str, ...] | None
    is_live: bool
    _parts: tuple[_Part, ...]

    def frames(self, on_error: Callable[[ImageError], None]) -> Iterator[Frame]:
        """Read one source after another; `on_error` is told of a video that cannot be read."""
        for number, part in enumerate(self._parts):
            try:
                for position, frame in enumerate(part.frames, start=1):
                    share = frame.share
                    if isinstance(part.frames, tuple):
                        share = position / len(part.frames)
                    yield replace(frame, share=(number + share) / len(self._parts))
            except ImageError as error:  # noqa: PERF203  the next source may be good
                on_error(error)


@dataclass(frozen=True)
class _Part:
    frames: Iterable[Frame]
    is_live: bool = False


def open_sources(given: Sequence[str], pace: Pace, listed: IO[bytes]) -> Sources:
    """Find the pictures of all sources.

    A source is a picture, a folder with any folders in it, a pattern such as `photos/**/*.jpg`, a
    data set (zip, csv, jsonl), a video, the number of a camera, the URL of a stream, or `-` for
    paths that `listed` gives, one on each line.

    Args:
        given: The sources.
        pace: Frames to take of videos and cameras.
        listed: Where `-` reads paths; asked for a line when the one before it was taken.

    Raises:
        DataError: A folder or a pattern has no picture, or a data set cannot be read. A file that
            cannot be read is told later, as a picture that failed.
    """
    parts = tuple(_part(source, pace, listed) for source in given)
    lists = [part.frames for part in parts if isinstance(part.frames, tuple)]
    known = len(lists) == len(parts)
    names = tuple(frame.name for frames in lists for frame in frames) if known else None
    return Sources(names, any(part.is_live for part in parts), parts)


def _part(source: str, pace: Pace, listed: IO[bytes]) -> _Part:
    if source == _LIST:
        return _Part(_frames_of_list(listed))
    if os.path.isdir(source):
        return _Part(_files(source, _in_folder(source), "Name a folder that has some."))
    exists = os.path.exists(source)
    if not exists and (_URL.match(source) or source.isdecimal()):
        return _Part(_frames_of_video(source, pace), is_live=True)
    if not exists and glob.has_magic(source):
        found = sorted(filter(_is_picture, glob.iglob(source, recursive=True)))
        return _Part(_files(source, found, "Quote the pattern; ** goes into folders."))
    suffix = os.path.splitext(source)[1].lower()
    if suffix in VIDEO_SUFFIXES:
        return _Part(_frames_of_video(source, pace))
    if suffix in _ARCHIVES:
        samples = read_samples(Path(source)).samples
        return _Part(tuple(Frame(_name(source, sample), sample) for sample in samples))
    return _Part((Frame(source, source),))


def _files(source: str, files: Iterable[str], fix: str) -> tuple[Frame, ...]:
    frames = tuple(Frame(file, file) for file in files)
    if not frames:
        raise DataError(f"{source} has no pictures ({', '.join(sorted(SUFFIXES))}).", fix)
    return frames


def _in_folder(folder: str) -> Iterator[str]:
    """Paths of the pictures of a folder and of all folders in it but hidden ones, sorted."""
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (os.path.join(path, name) for name in sorted(files) if _is_picture(name))


def _is_picture(path: str) -> bool:
    name = os.path.basename(path)
    return name[0] != "." and os.path.splitext(name)[1].lower() in SUFFIXES


def _name(source: str, sample: Sample) -> str:
    return sample.name if sample.archive is None else f"{source}/{sample.name}"


def _frames_of_list(listed: IO[bytes]) -> Iterator[Frame]:
    for line in listed:
        path = os.fsdecode(line.rstrip(b"\r\n"))
        if path:
            yield Frame(path, path)


def _frames_of_video(source: str, pace: Pace) -> Iterator[Frame]:
    for frame in frames_of_video(source, pace):
        yield Frame(public_name(source), frame.pixels, frame.number, frame.rate, frame.share)
