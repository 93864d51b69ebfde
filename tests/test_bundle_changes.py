"""Files that come to a bundle later, and what they make stale."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path

import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.bundle_changes import (
    locked,
    new_bundle,
    publish,
    staging_folder,
    update_manifest,
    write_manifest,
)
from sacvit_deploy.errors import BundleError, BundleIntegrityError
from sacvit_deploy.manifest import MANIFEST
from sacvit_deploy.records import EngineEntry, EngineFlags
from tests.exit_records import RECORDS, in_two_precisions
from tests.fakes import ENGINE, fake_manifest

ENTRY = dataclasses.replace(
    ENGINE,
    compute_capabilities=("8.7", "8.9"),
    precision_share={"half": 0.99, "int8": 0.0, "float": 0.01},
    flags=EngineFlags(workspace_mib=64),
    build_s=1.5,
    linear_share={"half": 1.0},
    layer_share={"half": 0.9, "float": 0.1},
)


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    with new_bundle(tmp_path / "bundle") as staging:
        for graph in fake_manifest().graphs:
            (staging / graph.file).write_text(graph.role)
        write_manifest(staging, fake_manifest())
    return Bundle.open(tmp_path / "bundle")


def add(bundle: Bundle, *entries: EngineEntry, content: bytes = b"plan") -> Bundle:
    with staging_folder(bundle) as staging:
        for entry in entries:
            (staging / entry.file).parent.mkdir(exist_ok=True)
            (staging / entry.file).write_bytes(content)
        files = {entry.file for entry in entries}
        kept = tuple(engine for engine in bundle.engines() if engine.file not in files)
        manifest = dataclasses.replace(bundle.manifest, engines=(*kept, *entries))
        return publish(bundle, staging, manifest)


def test_an_entry_is_read_back_as_it_was_written(bundle):
    add(bundle, ENTRY)
    reopened = Bundle.open(bundle.path)
    assert reopened.engines() == (ENTRY,)
    assert reopened.engine_path(ENTRY).read_bytes() == b"plan"


def test_engines_are_found_by_what_they_are(bundle):
    other = dataclasses.replace(ENTRY, role="refine", file="engines/sac.engine")
    rtx = dataclasses.replace(ENTRY, runtime="tensorrt-rtx", file="engines/rtx.engine")
    bundle = add(bundle, ENTRY, other, rtx)
    assert bundle.engines("early_exit") == (ENTRY, rtx)
    assert bundle.engines("early_exit", "fp16", "tensorrt") == (ENTRY,)
    assert bundle.engines(runtime="tensorrt-rtx") == (rtx,)
    assert bundle.engines(precision="int8") == ()


def test_there_is_one_engine_of_a_kind(bundle):
    twin = dataclasses.replace(ENTRY, file="engines/twin.engine")
    with pytest.raises(BundleIntegrityError, match="at most one engine"):
        add(bundle, ENTRY, twin)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"evil", "is not the one that was written"),
        (b"pl", "has 2 bytes; 4 were written"),
        (None, "is missing"),
    ],
)
@pytest.mark.parametrize("suffix", [".engine", ".log"])
def test_a_damaged_engine_does_not_spoil_the_bundle(bundle, content, says, suffix):
    log = dataclasses.replace(ENTRY, role="refine", file="engines/ee.fp16.tensorrt.log")
    add(bundle, ENTRY, log)
    file = (bundle.path / ENTRY.file).with_suffix(suffix)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    reopened = Bundle.open(bundle.path)
    [(name, damage)] = reopened.damaged_engine_files().items()
    assert name == f"engines/{file.name}"
    assert damage.startswith(says)
    repaired = add(reopened, ENTRY, log)
    assert Bundle.open(bundle.path).damaged_engine_files() == {}
    assert repaired.engines() == (ENTRY, log)


def test_an_engine_that_cannot_be_read_is_named(bundle, monkeypatch):
    bundle = add(bundle, ENTRY)

    def refuse(path):
        raise PermissionError(f"no access to {path.name}")

    monkeypatch.setattr("sacvit_deploy.bundle_changes.FileRecord.of", refuse)
    assert "cannot be read: no access" in bundle.damaged_engine_files()[ENTRY.file]


def test_who_publishes_at_the_same_time_loses_nothing(bundle, monkeypatch):
    """Each reads the description that the other is about to replace, unless they take turns."""
    entries = [
        dataclasses.replace(ENTRY, precision=precision, file=f"engines/{precision}.engine")
        for precision in ("fp32", "fp16", "int8")
    ]
    replace = os.replace

    def slowly(source, target):
        time.sleep(0.05)
        replace(source, target)

    monkeypatch.setattr(os, "replace", slowly)

    def build(entry: EngineEntry) -> None:
        with staging_folder(bundle) as staging:
            (staging / entry.file).parent.mkdir()
            (staging / entry.file).write_bytes(entry.precision.encode())
            with locked(bundle.path) as current:
                engines = (*current.engines(), entry)
                publish(current, staging, dataclasses.replace(current.manifest, engines=engines))

    threads = [threading.Thread(target=build, args=(entry,)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reopened = Bundle.open(bundle.path)
    assert {engine.precision for engine in reopened.engines()} == {"fp32", "fp16", "int8"}
    assert reopened.damaged_engine_files() == {}


def test_a_bundle_that_is_not_there_cannot_be_locked(tmp_path):
    with pytest.raises(BundleError), locked(tmp_path / "none"):
        pass


def test_nothing_stays_of_a_block_that_failed(bundle):
    def fail() -> None:
        with staging_folder(bundle) as staging:
            (staging / "half").write_bytes(b"half")
            raise ValueError("no")

    before = sorted(bundle.path.rglob("*"))
    with pytest.raises(ValueError, match="no"):
        fail()
    assert sorted(bundle.path.rglob("*")) == before


@pytest.mark.parametrize("calls", range(4))
def test_a_bundle_is_valid_at_every_moment(bundle, monkeypatch, calls):
    """Replacing an engine takes three renames: description, engine, description."""
    bundle = add(bundle, ENTRY)
    replace, left = os.replace, [calls]

    def power_cut(source, target):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", power_cut)
    if calls < 3:
        with pytest.raises(KeyboardInterrupt):
            add(bundle, ENTRY, content=b"next")
    else:
        add(bundle, ENTRY, content=b"next")
    reopened = Bundle.open(bundle.path)
    wanted = {0: b"plan", 3: b"next"}.get(calls)
    contents = [reopened.engine_path(engine).read_bytes() for engine in reopened.engines()]
    assert contents == ([wanted] if wanted else [])


def test_an_engine_leaves_the_description_with_its_graph(bundle, monkeypatch):
    """Until the new graph is there, so that a failure between leaves no engine of none."""
    half = dataclasses.replace(bundle.graph("early_exit"), precision="fp16", file="ee.fp16.onnx")
    other = dataclasses.replace(ENTRY, role="refine", file="engines/sac.engine")
    half_refine = dataclasses.replace(bundle.graph("refine"), precision="fp16", file=half.file)
    graphs = (*bundle.manifest.graphs, half, half_refine)
    with staging_folder(bundle) as staging:
        (staging / half.file).write_text("first")
        manifest = dataclasses.replace(bundle.manifest, graphs=graphs)
        bundle = publish(bundle, staging, manifest)
    fp32 = dataclasses.replace(ENTRY, precision="fp32", file="engines/fp32.engine")
    bundle = add(bundle, ENTRY, other, fp32)
    replace = os.replace

    def fail(source, target):
        if target.name == half.file:
            raise OSError("Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)

    def publish_again() -> None:
        with staging_folder(bundle) as staging:
            (staging / half.file).write_text("second")
            publish(bundle, staging, bundle.manifest)

    with pytest.raises(BundleError, match="Input/output error"):
        publish_again()
    assert Bundle.open(bundle.path).engines() == (fp32,)


@pytest.mark.parametrize("can_be_removed", [True, False])
def test_what_a_new_description_does_not_have_is_removed(bundle, monkeypatch, can_be_removed):
    bundle = add(bundle, ENTRY)
    described = []

    def unlink(self, *, missing_ok=False):
        if self.suffix == ".engine":
            described.append(ENTRY.file in Bundle.open(bundle.path).manifest.files)
            if not can_be_removed:
                raise PermissionError("it is in use")
        remove(self, missing_ok=missing_ok)

    remove = Path.unlink
    monkeypatch.setattr(Path, "unlink", unlink)
    files = {k: v for k, v in bundle.manifest.files.items() if k != ENTRY.file}
    with staging_folder(bundle) as staging:
        manifest = dataclasses.replace(bundle.manifest, files=files, engines=())
        published = publish(bundle, staging, manifest)
    assert described == [False]
    assert bundle.engine_path(ENTRY).exists() is not can_be_removed
    assert Bundle.open(bundle.path).manifest == published.manifest


def test_a_folder_that_cannot_be_written_is_one_error(bundle):
    missing = dataclasses.replace(bundle, path=bundle.path / "gone")
    with pytest.raises(BundleError, match="cannot be written"), staging_folder(missing):
        pass
    with pytest.raises(BundleError, match="cannot be written"):
        update_manifest(missing, bundle.manifest)


@pytest.fixture
def calibrated(tmp_path) -> Bundle:
    """FP32 and FP16 graphs, one engine, four calibrations."""
    manifest = in_two_precisions()
    engine = dataclasses.replace(
        ENGINE,
        role="refine",
        file="engines/sac.engine",
        precision_share={"half": 1.0},
        build_s=1.5,
    )
    with new_bundle(tmp_path / "bundle") as staging:
        (staging / "engines").mkdir()
        for file in (*(graph.file for graph in manifest.graphs), engine.file):
            (staging / file).write_text(file)
        write_manifest(
            staging, dataclasses.replace(manifest, engines=(engine,), exit_calibrations=RECORDS)
        )
    return Bundle.open(tmp_path / "bundle")


def replace_files(bundle: Bundle, *names: str) -> Bundle:
    with staging_folder(bundle) as staging:
        for name in names:
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text("changed")
        return publish(bundle, staging, bundle.manifest)


@pytest.mark.parametrize(
    ("file", "kept"),
    [
        ("ee.fp16.onnx", RECORDS[:1]),
        ("engines/sac.engine", (RECORDS[0], RECORDS[1], RECORDS[3])),
        ("engines/other.engine", RECORDS),
        ("ee.int8.onnx", RECORDS),
    ],
)
def test_what_a_replaced_file_was_measured_with_is_dropped(calibrated, file, kept):
    published = replace_files(calibrated, file)
    assert published.manifest.exit_calibrations == kept
    assert Bundle.open(calibrated.path).manifest == published.manifest


def test_they_are_dropped_before_the_file_is_replaced(calibrated, monkeypatch):
    """As after a power cut."""
    real = os.replace

    def fails_for_graphs(source, target):
        if str(target).endswith(".onnx"):
            raise OSError("no power")
        real(source, target)

    monkeypatch.setattr(os, "replace", fails_for_graphs)
    with pytest.raises(BundleError, match="no power"):
        replace_files(calibrated, "ee.fp16.onnx", "sac.fp16.onnx")
    assert Bundle.open(calibrated.path).manifest.exit_calibrations == RECORDS[:1]


def test_a_missing_engine_file_is_noticed(bundle):
    add(bundle, ENTRY)
    unknown = dataclasses.replace(ENTRY, file="engines/unknown.engine")
    text = dataclasses.replace(Bundle.open(bundle.path).manifest, engines=(unknown,)).to_json()
    (bundle.path / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="not among the bundle's files"):
        Bundle.open(bundle.path)
