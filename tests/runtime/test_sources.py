from __future__ import annotations

import io
import os
import shutil
import zipfile

import numpy as np
import pytest

from sacvit_deploy.errors import DataError, ImageError
from sacvit_deploy.runtime.sources import Frame, Sources, open_sources
from sacvit_deploy.runtime.video import Pace, VideoFrame
from sacvit_deploy.samples import sample_pictures

PICTURE = sample_pictures()[0]


def opened(*given: object, listed: bytes = b"") -> Sources:
    return open_sources([str(source) for source in given], Pace(), io.BytesIO(listed))


def raising(error: ImageError) -> None:
    raise error


def frames(*given: object, listed: bytes = b"") -> list[Frame]:
    return list(opened(*given, listed=listed).frames(raising))


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Pictures in nested folders, and what does not belong to them."""
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.jpg", "b/1.JPG", "a/x/1.png", "3.jpg", "a/notes.txt", ".cache/4.jpg"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PICTURE, file)
    shutil.copy(PICTURE, tmp_path / "photos" / ".5.jpg")
    return tmp_path / "photos"


def test_a_folder_gives_the_pictures_of_all_its_folders(photos):
    found = frames("photos")
    assert [frame.name for frame in found] == [
        "photos/3.jpg",
        "photos/a/x/1.png",
        "photos/b/1.JPG",
        "photos/b/2.jpg",
    ]
    assert [frame.picture for frame in found] == [frame.name for frame in found]
    assert {frame.number for frame in found} == {None}


def test_sources_follow_each_other_and_their_names_are_known(photos):
    sources = opened("photos/b", PICTURE, "photos/*.jpg", "missing.jpg")
    assert sources.names == ("photos/b/1.JPG", "photos/b/2.jpg", str(PICTURE), *_REST)
    assert tuple(frame.name for frame in sources.frames(raising)) == sources.names
    assert not sources.is_live


_REST = ("photos/3.jpg", "missing.jpg")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("photos/**/1.*", ["photos/a/x/1.png", "photos/b/1.JPG"]),
        ("photos/?/*.[jJ]*", ["photos/b/1.JPG", "photos/b/2.jpg"]),
    ],
)
def test_patterns(photos, pattern, found):
    assert [frame.name for frame in frames(pattern)] == found


def test_a_file_whose_name_is_a_pattern_is_that_file(photos):
    shutil.copy(PICTURE, "photos/[1].jpg")
    assert [frame.name for frame in frames("photos/[1].jpg")] == ["photos/[1].jpg"]


@pytest.mark.parametrize("source", ["photos/*.gif", "photos/a/*", "empty"])
def test_no_pictures(photos, source):
    (photos.parent / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no pictures \(\.avif, "):
        opened(source)


def test_data_sets(photos):
    with zipfile.ZipFile("set.zip", "w") as archive:
        for name in ("val/cat/1.jpg", "val/dog/2.jpg"):
            archive.write(PICTURE, name)
    found = frames("set.zip")
    assert [frame.name for frame in found] == ["set.zip/val/cat/1.jpg", "set.zip/val/dog/2.jpg"]
    (photos.parent / "set.csv").write_text("path,label\nphotos/3.jpg,cat\n")
    assert [frame.name for frame in frames("set.csv")] == ["photos/3.jpg"]


def test_a_list_is_read_line_by_line(photos):
    odd = os.fsdecode(b"caf\xe9.jpg")
    found = frames("photos/b/2.jpg", "-", listed=b"a.jpg\r\n\n  b.jpg\n" + os.fsencode(odd))
    assert [frame.name for frame in found] == ["photos/b/2.jpg", "a.jpg", "  b.jpg", odd]
    assert opened("-", "photos").names is None
    stream = io.BytesIO(b"a.jpg\nb.jpg\n")
    source = open_sources(["-"], Pace(), stream).frames(raising)
    assert next(source).name == "a.jpg"
    assert stream.tell() == len(b"a.jpg\n")


@pytest.mark.parametrize("source", ["0", "17", "rtsp://camera/1", "http://h/v.mp4?token=[1]*"])
def test_cameras_and_streams_are_live(source):
    assert opened(source).is_live
    assert opened(source).names is None


def test_a_file_named_like_a_camera_is_a_file(photos):
    shutil.copy(PICTURE, "0")
    assert opened("0").names == ("0",)


def test_a_video_that_cannot_be_read_does_not_end_the_others(photos):
    pytest.importorskip("cv2", reason="needs the video extra")
    told: list[ImageError] = []
    sources = opened("photos/3.jpg", "none.mp4", "photos/b/2.jpg")
    found = [frame.name for frame in sources.frames(told.append)]
    assert found == ["photos/3.jpg", "photos/b/2.jpg"]
    assert [error.problem for error in told] == ["The video 'none.mp4' does not exist."]


def test_shares_rise_from_source_to_source(photos, monkeypatch):
    clip = [VideoFrame(n, np.zeros((2, 2, 3), np.uint8), 25, (n + 1) / 2) for n in range(2)]
    monkeypatch.setattr("sacvit_deploy.runtime.sources.frames_of_video", lambda *_: iter(clip))
    given = ("photos", "clip.mp4", "-", "photos/3.jpg")
    found = [frame.share for frame in frames(*given, listed=b"photos/b/2.jpg\n")]
    assert found == pytest.approx([1 / 16, 2 / 16, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 1 / 2, 1])
