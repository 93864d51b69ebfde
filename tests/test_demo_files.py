"""Files of the demo: what they hold, and that they are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sacvit_deploy.bundle import Bundle, demo_bundle
from sacvit_deploy.demo_files import (
    VIEWS,
    bundle_files,
    labelled_files,
    picture_files,
    write_files,
)
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.runtime.pictures import read_picture
from sacvit_deploy.samples import read_samples, sample_photographs, sample_pictures

FILES = {"a.txt": b"a", "b/c.txt": b"c"}


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones too."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_the_labelled_set_has_views_of_every_photograph(tmp_path):
    write_files(tmp_path / "set", labelled_files(), alone=True)
    found, photographs = read_samples(tmp_path / "set"), sample_photographs()
    assert found.classes == photographs.classes
    assert len(found.samples) == VIEWS * len(photographs.samples) >= 50  # calibrate's minimum
    per_class = {name: sum(s.label == name for s in found.samples) for name in found.classes}
    assert per_class == {
        name: VIEWS * sum(s.label == name for s in photographs.samples) for name in found.classes
    }
    pictures = [read_picture(sample) for sample in found.samples]
    assert {max(picture.size) for picture in pictures} == {128}
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_the_views_follow_from_the_seed():
    first, again, other = labelled_files(), labelled_files(0), labelled_files(1)
    assert first == again
    changed = [name for name in first if first[name] != other[name]]
    whole = [name for name in first if name.endswith("_0.jpg")]
    assert len(whole) == len(sample_photographs().samples)
    assert set(changed).isdisjoint(whole)
    assert len(changed) == (VIEWS - 1) * len(whole)


def test_the_pictures_come_with_their_licences(tmp_path):
    write_files(tmp_path / "out", picture_files(), alone=False)
    names = {path.name for path in sample_pictures()} | {"LICENSES.md"}
    assert set(content(tmp_path / "out")) == names


def test_the_bundle_is_the_demo_bundle(tmp_path):
    write_files(tmp_path / "bundle", bundle_files(), alone=True)
    assert content(tmp_path / "bundle") == content(demo_bundle())
    assert Bundle.open(tmp_path / "bundle").manifest == Bundle.open(demo_bundle()).manifest


@pytest.mark.parametrize("alone", [True, False])
def test_what_is_there_already_stays(tmp_path, alone):
    write_files(tmp_path / "out", FILES, alone=alone)
    before = (tmp_path / "out" / "a.txt").stat()
    write_files(tmp_path / "out", FILES, alone=alone)
    assert content(tmp_path / "out") == FILES
    after = (tmp_path / "out" / "a.txt").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_an_empty_folder_is_filled(tmp_path):
    write_files(tmp_path, FILES, alone=True)
    assert content(tmp_path) == FILES


@pytest.mark.parametrize(
    ("there", "alone", "named"),
    [
        ({"a.txt": b"other"}, True, "a.txt"),
        ({"a.txt": b"other"}, False, "a.txt"),
        ({"a.txt/c": b"a folder of that name"}, False, "a.txt"),
        ({"z.txt": b"z"}, True, "z.txt"),
        ({**FILES, "z.txt": b"z"}, True, "z.txt"),
        ({"a.txt": b"a"}, True, "a.txt"),  # one part of the files
    ],
)
def test_nothing_is_overwritten(tmp_path, there, alone, named):
    for name, data in there.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=rf"{named} is already there.*\nChoose a new folder"):
        write_files(tmp_path, FILES, alone=alone)
    assert content(tmp_path) == there


def test_a_link_to_nothing_is_in_the_way(tmp_path):
    (tmp_path / "a.txt").symlink_to("nothing")
    with pytest.raises(ConfigError, match=r"a\.txt is already there"):
        write_files(tmp_path, FILES, alone=False)
    assert (tmp_path / "a.txt").is_symlink()


def test_other_files_may_lie_beside(tmp_path):
    (tmp_path / "z.txt").write_bytes(b"z")
    write_files(tmp_path, {"a.txt": b"a"}, alone=False)
    assert content(tmp_path) == {"a.txt": b"a", "z.txt": b"z"}


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize(("owner", "name"), [(Path, "write_bytes"), (os, "rename")])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, owner, name, is_new):
    folder, real, calls = tmp_path / "out", getattr(owner, name), 0
    if not is_new:
        folder.mkdir()

    def second_fails(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(owner, name, second_fails)
    with pytest.raises(ConfigError, match=r"out cannot be written: .*No space left on device"):
        write_files(folder, FILES, alone=False)
    assert list(tmp_path.rglob("*")) == ([] if is_new else [folder])


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="out cannot be written"):
        write_files(tmp_path / "out", FILES, alone=False)
    assert (tmp_path / "out").read_text() == "mine"
