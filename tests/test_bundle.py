from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sacvit_deploy import files
from sacvit_deploy.bundle import Bundle, from_bundle
from sacvit_deploy.bundle_changes import (
    check_replaceable,
    locked,
    new_bundle,
    update_manifest,
    write_manifest,
)
from sacvit_deploy.errors import BundleError, BundleIntegrityError, EngineError
from sacvit_deploy.files import folder_lock, swap_in
from sacvit_deploy.manifest import FORMAT_VERSION, MANIFEST
from tests.fakes import fake_manifest

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")


def write(path: Path, content: str = "graph", *, force: bool = False) -> Path:
    """A bundle whose graphs are not graphs."""
    with new_bundle(path, force=force) as staging:
        for graph in fake_manifest().graphs:
            (staging / graph.file).write_text(content)
        (staging / "weights").mkdir()
        (staging / "weights" / "shared.bin").write_bytes(b"\0" * 100)
        write_manifest(staging, fake_manifest())
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "out" / "bundle")


def edit(folder: Path, **values) -> None:
    """Change `bundle.json` by hand; None removes a key. Version 1 has no digest."""
    file = folder / MANIFEST
    found = {**json.loads(file.read_text()), "format_version": 1, **values}
    file.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_what_is_written_is_read(folder) -> None:
    bundle = Bundle.open(folder)
    assert set(bundle.manifest.files) == {"ee.onnx", "sac.onnx", "weights/shared.bin"}
    assert bundle.manifest.files["weights/shared.bin"].bytes == 100
    assert dataclasses.replace(bundle.manifest, files={}) == fake_manifest()
    assert bundle.graph_path(bundle.graph("refine")).read_text() == "graph"
    assert bundle.is_random
    assert names(folder.parent) == {"bundle"}
    assert Bundle.open(str(folder)).path == folder


def test_a_new_bundle_has_the_usual_permissions(folder, tmp_path) -> None:
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_graph_that_is_not_there_is_refused(folder) -> None:
    with pytest.raises(BundleError, match="no refine graph in int8; it has early_exit in fp32"):
        Bundle.open(folder).graph("refine", "int8")


@pytest.mark.parametrize("name", ["ee.onnx", "weights/shared.bin"])
def test_one_changed_byte_is_found(folder, name) -> None:
    data = bytearray((folder / name).read_bytes())
    data[2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleIntegrityError, match=f"{name} is not the one that was written"):
        Bundle.open(folder)
    assert Bundle.open(folder, check_hashes=False).path == folder


@pytest.mark.parametrize("check_hashes", [True, False])
def test_a_truncated_or_missing_file_is_found(folder, check_hashes) -> None:
    (folder / "sac.onnx").write_text("gra")
    with pytest.raises(BundleIntegrityError, match=r"sac\.onnx has 3 bytes; 5 were written"):
        Bundle.open(folder, check_hashes=check_hashes)
    (folder / "sac.onnx").unlink()
    with pytest.raises(BundleIntegrityError, match=r"sac\.onnx is missing"):
        Bundle.open(folder, check_hashes=check_hashes)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"eta": 1.5}, "eta is 1.5"),
        ({"graphs": []}, "The graphs are none"),
        ({"files": {}}, "not among the bundle's files"),
        ({"format": "other"}, "not the description"),
        ({"format_version": FORMAT_VERSION + 1}, "version 3; this release reads up to 2"),
    ],
)
def test_a_mistake_in_the_description_names_the_bundle(folder, values, says) -> None:
    edit(folder, **values)
    with pytest.raises(BundleError, match=says) as caught:
        Bundle.open(folder)
    assert str(folder) in caught.value.problem


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("model.onnx", "one ONNX graph, not a folder.*\nGive the folder that holds bundle.json"),
        ("model.pth", "a checkpoint, not a folder.*\n.*sacvit-deploy export"),
        ("bundle.zip", "an archive, not a folder.*\nUnpack"),
        ("notes", "a file, not a folder"),
        ("bundle.json", "a file of a bundle.*\nGive its folder"),
        ("folder/ee.onnx", None),
    ],
)
def test_what_is_not_a_bundle_is_named(tmp_path, file, says) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.touch()
    if says is None:
        path, says = path.parent, r"no bundle\.json; it holds ee\.onnx"
    with pytest.raises(BundleError, match=says):
        Bundle.open(path)


def test_nothing_there(tmp_path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(BundleError, match="holds nothing"):
        Bundle.open(tmp_path)


def test_an_existing_bundle_is_replaced_by_force_only(folder) -> None:
    with pytest.raises(BundleError, match=r"exists\.\n.*--force"):
        write(folder, "other")
    assert (folder / "ee.onnx").read_text() == "graph"
    write(folder, "other", force=True)
    assert (folder / "ee.onnx").read_text() == "other"
    assert names(folder.parent) == {"bundle"}
    Bundle.open(folder)


def test_force_replaces_an_empty_folder_and_nothing_else(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    Bundle.open(write(tmp_path / "empty", force=True))
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").touch()
    for path in (home, home / "thesis.txt"):
        with pytest.raises(BundleError, match="is not a bundle, so --force"):
            write(path, force=True)
    assert names(home) == {"thesis.txt"}


def test_a_link_to_a_bundle_stays_a_link(folder, tmp_path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(folder)
    write(link, "other", force=True)
    assert link.is_symlink()
    assert (folder / "ee.onnx").read_text() == "other"


def test_a_bundle_that_came_there_meanwhile_stays(tmp_path) -> None:
    path = tmp_path / "bundle"

    def export() -> None:
        with new_bundle(path) as staging:
            write(path)
            (staging / MANIFEST).touch()

    with pytest.raises(BundleError, match="exists"):
        export()
    assert Bundle.open(path).path == path
    assert names(tmp_path) == {"bundle"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_export_leaves_no_trace(tmp_path, error, exists) -> None:
    path = tmp_path / "bundle"
    if exists:
        write(path)

    def export() -> None:
        with new_bundle(path, force=True) as staging:
            (staging / "ee.onnx").write_text("half")
            raise error

    with pytest.raises(error):
        export()
    assert names(tmp_path) == ({"bundle"} if exists else set())
    if exists:
        assert Bundle.open(path).manifest.labels


@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_swap_brings_the_old_bundle_back(tmp_path, monkeypatch, exists) -> None:
    path = tmp_path / "bundle"
    if exists:
        write(path)
    rename = Path.rename

    def fails_for_staging(self, target):
        if self.parent.suffix == ".tmp":
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", fails_for_staging)
    with pytest.raises(BundleError, match="no space left"):
        write(path, "other", force=True)
    assert names(tmp_path) == ({"bundle"} if exists else set())
    if exists:
        assert (path / "ee.onnx").read_text() == "graph"


_ENDED = """
import os, signal, sys
from pathlib import Path
from sacvit_deploy import files
from sacvit_deploy.bundle_changes import new_bundle, write_manifest
from tests.fakes import fake_manifest

rename = Path.rename

def ended_when_the_old_one_is_aside(self, target):
    rename(self, target)
    if target.suffix == ".old":
        os.kill(os.getpid(), signal.Signals[sys.argv[2]])

files._exchange = lambda *_: False
Path.rename = ended_when_the_old_one_is_aside
with new_bundle(sys.argv[1], force=True) as staging:
    for graph in fake_manifest().graphs:
        (staging / graph.file).write_text("other")
    write_manifest(staging, fake_manifest())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process there at once")
def test_sigterm_between_the_two_renames_brings_the_old_bundle_back(folder) -> None:
    """In a process of its own, which would end where it is not caught."""
    command = [sys.executable, "-c", _ENDED, str(folder), "SIGTERM"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in ran.stderr
    assert names(folder.parent) == {"bundle"}
    Bundle.open(folder)
    assert (folder / "ee.onnx").read_text() == "graph"


@needs_locks
def test_an_old_bundle_that_a_killed_export_left_aside_is_there_at_the_next_open(folder) -> None:
    command = [sys.executable, "-c", _ENDED, str(folder), "SIGKILL"]
    assert subprocess.run(command, capture_output=True, check=False).returncode < 0
    assert not folder.exists()
    assert Bundle.open(folder).graph_path(fake_manifest().graphs[0]).read_text() == "graph"
    with pytest.raises(BundleError, match="exists"):
        write(folder)
    write(folder, "other", force=True)
    assert names(folder.parent) == {"bundle"}


@needs_locks
@pytest.mark.parametrize("change", [write, check_replaceable])
def test_an_export_after_a_killed_one_finds_the_old_bundle(folder, change) -> None:
    folder.rename(folder.parent / ".bundle.0123abcd.old")
    change(folder, force=True)
    assert Bundle.open(folder).path == folder
    assert names(folder.parent) == {"bundle"}


@needs_locks
def test_the_next_export_or_change_removes_what_killed_ones_left(folder) -> None:
    others = {".other.0123abcd.tmp", ".bundle.mine.tmp", "bundle.0123abcd.tmp"}
    for name in (*others, ".bundle.0123abcd.tmp", ".bundle.4567cdef.old"):
        (folder.parent / name / "bundle").mkdir(parents=True)
    (folder / ".0123abcd.tmp").mkdir()
    (folder / ".bundle.json.0123abcd.tmp").touch()
    with locked(folder) as bundle:
        update_manifest(bundle, bundle.manifest)
    assert names(folder) == {"ee.onnx", "sac.onnx", "weights", MANIFEST}
    with new_bundle(folder, force=True) as staging:
        assert names(folder.parent) == {"bundle", staging.parent.name} | others
        write(folder, "other", force=True)
        assert staging.is_dir(), "it belongs to somebody who still works"
        for graph in fake_manifest().graphs:
            (staging / graph.file).touch()
        write_manifest(staging, fake_manifest())
    assert names(folder.parent) == {"bundle"} | others


@needs_locks
def test_a_writer_waits_until_the_files_are_read(folder) -> None:
    def make(bundle: Bundle) -> str:
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        return bundle.graph_path(bundle.manifest.graphs[0]).read_text()

    thread = threading.Thread(target=write, args=(folder, "other"), kwargs={"force": True})
    assert from_bundle(folder, make) == "graph"
    thread.join()
    assert from_bundle(folder, lambda bundle: (bundle.path / "ee.onnx").read_text()) == "other"


@pytest.mark.parametrize("fails", [True, False])
def test_without_locks_a_bundle_that_was_changed_is_read_again(folder, monkeypatch, fails) -> None:
    """Writers on Windows, and those that ask nobody."""
    contents = ["first", "second"]

    def make(bundle: Bundle) -> str:
        found = bundle.graph_path(bundle.manifest.graphs[0]).read_text()
        if contents:
            write(folder, contents.pop(0), force=True)
            if fails:
                raise EngineError("Two files of two bundles do not fit.", "Give one bundle.")
        return found

    monkeypatch.setattr(sys, "platform", "win32")
    assert from_bundle(folder, make) == "second"


def test_a_bundle_that_never_stays_is_refused(folder, monkeypatch) -> None:
    monkeypatch.setattr("sacvit_deploy.bundle._PAUSE_S", 0)
    seen = []

    def make(bundle: Bundle) -> None:
        seen.append(bundle)
        os.utime(bundle.path / "ee.onnx", ns=(0, len(seen)))

    with pytest.raises(BundleIntegrityError, match="was changed while it was read"):
        from_bundle(folder, make)
    assert len(seen) == 5


def test_without_locks_a_bundle_between_two_renames_is_waited_for(folder, monkeypatch) -> None:
    aside = folder.rename(folder.parent / ".bundle.0123abcd.old")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("time.sleep", lambda _: aside.rename(folder) if aside.exists() else None)
    assert Bundle.open(folder).path == folder


def test_a_failure_of_an_unchanged_bundle_comes_at_once(folder) -> None:
    seen = []

    def make(bundle: Bundle) -> None:
        seen.append(bundle)
        raise EngineError("No backend.", "Install one.")

    with pytest.raises(EngineError, match="No backend"):
        from_bundle(folder, make)
    assert len(seen) == 1


def test_a_folder_that_cannot_be_locked_is_read(folder, monkeypatch) -> None:
    opened = os.open

    def refuse(path, *rest):
        if Path(path) == folder:
            raise PermissionError("read-only")
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    assert Bundle.open(folder).path == folder


@needs_locks
def test_nobody_else_changes_a_bundle_while_it_is_replaced(folder, monkeypatch) -> None:
    seen = []

    def watched(staging, target):
        with folder_lock(target, wait=False) as is_free:
            seen.append(is_free)
        swap_in(staging, target)

    monkeypatch.setattr("sacvit_deploy.bundle_changes.swap_in", watched)
    write(folder, "other", force=True)
    assert seen == [False]
    assert (folder / "ee.onnx").read_text() == "other"


def test_an_export_without_description_is_a_mistake(tmp_path) -> None:
    with pytest.raises(BundleError, match=r"No bundle\.json"), new_bundle(tmp_path / "bundle"):
        pass
    assert names(tmp_path) == set()


def test_a_graph_without_its_file_is_not_described(tmp_path) -> None:
    with pytest.raises(BundleIntegrityError, match="early_exit graph"):
        write_manifest(tmp_path, fake_manifest())
    assert names(tmp_path) == set()


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot be written"):
        write(tmp_path / "file" / "bundle")


def test_the_description_is_updated_in_one_step(folder, monkeypatch) -> None:
    bundle = Bundle.open(folder)
    before = names(folder)
    changed = update_manifest(bundle, dataclasses.replace(bundle.manifest, eta=0.75))
    assert changed == Bundle.open(folder)
    assert changed.manifest.eta == 0.75
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("read-only")))
    with pytest.raises(BundleError, match="read-only"):
        update_manifest(bundle, dataclasses.replace(bundle.manifest, eta=0.1))
    assert Bundle.open(folder).manifest.eta == 0.75
    assert names(folder) == before


def test_what_engines_are_built_from_belongs_to_a_graph(tmp_path) -> None:
    manifest = fake_manifest()
    first, *others = manifest.graphs
    first = dataclasses.replace(first, engine_file="ee.half.onnx")
    manifest = dataclasses.replace(manifest, graphs=(first, *others))
    with new_bundle(tmp_path / "bundle") as staging:
        for name in (name for graph in manifest.graphs for name in graph.files):
            (staging / name).write_text(name)
        write_manifest(staging, manifest)
    bundle = Bundle.open(tmp_path / "bundle")
    paths = [bundle.engine_graph_path(graph).name for graph in bundle.manifest.graphs]
    assert paths == ["ee.half.onnx", others[0].file]
    assert bundle.graph_path(bundle.manifest.graphs[0]).name == first.file
    (bundle.path / "ee.half.onnx").write_text("changed")
    with pytest.raises(BundleIntegrityError, match=r"ee\.half\.onnx"):
        Bundle.open(bundle.path)
    described = json.loads((bundle.path / MANIFEST).read_text())
    edit(bundle.path, files={k: v for k, v in described["files"].items() if "half" not in k})
    with pytest.raises(BundleIntegrityError, match=r"ee\.half\.onnx is not among"):
        Bundle.open(bundle.path)


def with_external_data(folder: Path, name: str) -> None:
    """Make a graph refer to a file of weights, in the bytes that onnx writes."""
    length = len(name.encode())
    varint = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
    reference = b"\n\x08location\x12" + varint + name.encode() + b"\x12\x06offset"
    (folder / "sac.onnx").write_bytes(b"graph" + reference)


@pytest.mark.parametrize("version", [1, FORMAT_VERSION])
@pytest.mark.parametrize("name", ["w.bin", "w" * 200 + ".bin", "weights/more.bin"])
def test_weights_that_no_hash_covers_are_refused(folder, name, version) -> None:
    """Of an older bundle or of a newer: the description is as its writer made it."""
    with_external_data(folder, name)
    (folder / name).write_bytes(b"weights")
    complete = write_manifest(folder, fake_manifest())
    assert Bundle.open(folder).manifest == complete
    without = {key: record for key, record in complete.files.items() if key != name}
    (folder / MANIFEST).write_text(dataclasses.replace(complete, files=without).to_json())
    if version == 1:
        edit(folder)
    with pytest.raises(BundleIntegrityError, match=r"The graph sac\.onnx refers to '(w|weights/)"):
        Bundle.open(folder)


def test_a_changed_description_is_noticed(folder) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    del values["files"]["weights/shared.bin"]
    (folder / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(BundleIntegrityError, match="its digest is missing or differs"):
        Bundle.open(folder)


def test_a_huge_description_is_refused_by_its_size(folder) -> None:
    os.truncate(folder / MANIFEST, 64 << 30)
    with pytest.raises(BundleError, match=r"68719476736 bytes") as caught:
        Bundle.open(folder)
    assert str(folder) in caught.value.problem


@pytest.mark.parametrize("path", ["x" * 300, "a\0b", "\ud800", "link"])
def test_paths_that_no_folder_can_have_are_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("link")
    for use in (Bundle.open, lambda name: new_bundle(name).__enter__()):
        with pytest.raises(BundleError, match="path of a bundle"):
            use(path)
