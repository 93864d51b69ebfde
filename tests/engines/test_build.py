"""Real engines, built by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sacvit_deploy.bundle import Bundle, read_bundle
from sacvit_deploy.bundle_changes import publish, update_manifest
from sacvit_deploy.engines import build, plan
from sacvit_deploy.engines.build import build_engines
from sacvit_deploy.engines.engine_request import BatchRange
from sacvit_deploy.engines.machine import Gpu, Machine
from sacvit_deploy.errors import (
    BundleError,
    BundleIntegrityError,
    EngineError,
    MissingDependencyError,
)
from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.files import FileRecord, folder_lock
from sacvit_deploy.records import Agreement, PrecisionRecord
from tests.engines.builds import ADA, quiet, request
from tests.engines.typed_onnx import write_typed_bundle, write_typed_graph
from tests.tiny_models import GATED, strong_gated

rtx = pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")

pytestmark = pytest.mark.usefixtures("machine")


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_graph_becomes_an_engine(typed, precision):
    targets = ("8.6", "8.9", "12.0")
    wanted = request(precision, compute_capabilities=targets, batch=BatchRange(1, 4, 16))
    bundle, entries = build_engines(typed, wanted, quiet)
    assert [entry.role for entry in entries] == ["early_exit", "refine"]
    assert entries[0].file == f"engines/ee.{precision}.tensorrt-rtx.engine"
    reopened = Bundle.open(typed.path)
    assert reopened.manifest == bundle.manifest
    assert reopened.engines(precision=precision) == entries
    for entry in entries:
        assert (entry.batch, entry.compute_capabilities) == ((1, 4, 16), targets)
        assert entry.runtime_version == rtx.__version__
        assert reopened.engine_path(entry).stat().st_size == entry.bytes > 1000
        assert reopened.engine_path(entry).read_bytes()[:4] == b"vtrt", "nothing is prepended"


def test_fp32_means_fp32_and_not_tf32(typed):
    bundle, (entry, _) = build_engines(typed, request(compute_capabilities=("8.6",)), quiet)
    (flags,) = re.findall(r"Flags +\| \[(.*)\]", (bundle.path / entry.files[1]).read_text())
    assert set(flags.split(", ")) == {"REQUIRE_USER_ALLOCATION", "STRONGLY_TYPED"}


@pytest.mark.parametrize("selection", ["host", "graph"])
def test_kernels_of_the_second_stage_are_for_a_quarter_of_the_batch(tmp_path, selection):
    bundle = write_typed_bundle(tmp_path / "bundle", selection=selection)
    bundle, entries = build_engines(bundle, request(batch=BatchRange(1, 30, 32)), quiet)
    found = [rows_of_profiles(bundle.path / entry.files[1]) for entry in entries]
    assert found == [{(1, 30, 32)}, {(1, 8, 32)}]
    assert [entry.batch for entry in entries] == [(1, 30, 32)] * 2, "what was asked for"


def rows_of_profiles(log: Path) -> set[tuple[int, ...]]:
    """Rows of the smallest, best and largest shape of all inputs, as an engine's log has them."""
    rows = r"\w+ \[min=\((\d+),.*?\), opt=\((\d+),.*?\), max=\((\d+),.*?\)\]"
    return {tuple(map(int, sizes)) for sizes in re.findall(rows, log.read_text())}


def test_shares_are_those_of_the_graphs(typed):
    shares = {}
    for precision in ("fp32", "fp16", "int8"):
        typed, entries = build_engines(typed, request(precision), quiet)
        shares[precision] = entries[0]
    assert shares["fp32"].precision_share == {"half": 0, "int8": 0, "float": 1}
    assert shares["fp16"].precision_share["half"] > 0.95
    assert shares["fp16"].linear_share == {"half": 1, "int8": 0, "float": 0}
    assert shares["int8"].linear_share == {"half": 0, "int8": 1, "float": 0}
    assert shares["int8"].layer_share["int8"] > 0
    assert len(typed.engines()) == 6


def test_the_graph_may_select(tmp_path):
    bundle = write_typed_bundle(tmp_path / "bundle", selection="graph")
    _, entries = build_engines(bundle, request(), quiet)
    assert len(entries) == 2


@pytest.mark.parametrize(("role", "precision"), [("early_exit", "fp16"), ("refine", "int8")])
def test_an_fp32_graph_under_another_name_is_refused(typed, role, precision):
    planted = typed.graph(role, precision)
    write_typed_graph(typed.path / planted.file, planted, "fp32")
    record = FileRecord.of(typed.path / planted.file)
    manifest = dataclasses.replace(
        typed.manifest, files={**typed.manifest.files, planted.file: record}
    )
    bundle = update_manifest(typed, manifest)
    before = snapshot(bundle.path)
    with pytest.raises(EngineError, match=rf"{planted.file} is not {precision}: .*100\.0% float"):
        build_engines(bundle, request(precision), quiet)
    assert snapshot(bundle.path) == before


def test_half_precision_under_the_name_of_fp32_is_refused(typed):
    graph = typed.graph("early_exit")
    write_typed_graph(typed.path / graph.file, graph, "fp16")
    with pytest.raises(EngineError, match=r"ee\.onnx is not fp32"):
        build_engines(typed, request(), quiet)


def test_shapes_that_depend_on_the_picture_are_refused(tmp_path):
    config = GATED.replace(mode="exact")
    bundle = export_bundle(strong_gated(config), tmp_path / "exact", ExportOptions())
    with pytest.raises(EngineError, match=r"model\.onnx .*NonZero") as caught:
        build_engines(bundle, request(), quiet)
    assert "--gates capacity" in caught.value.fix
    assert bundle.engines() == ()


@pytest.mark.parametrize("mode", ["masked", "capacity"])
def test_gates_become_engines(tmp_path, mode):
    config = GATED.replace(mode=mode, capacity=(64, 40))
    bundle = export_bundle(strong_gated(config), tmp_path / mode, ExportOptions())
    _, (entry,) = build_engines(bundle, request(), quiet)
    assert entry.precision_share == {"half": 0, "int8": 0, "float": 1}


def test_a_missing_precision_names_the_command(tmp_path):
    bundle = write_typed_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"no int8 graphs; it has fp32\.\n.*--calibration-data"):
        build_engines(bundle, request("int8"), quiet)
    with pytest.raises(BundleError, match="export --precision fp16\\."):
        build_engines(bundle, request("fp16"), quiet)


def test_an_engine_is_replaced_and_the_others_stay(typed):
    build_engines(typed, request("fp16"), quiet)
    build_engines(Bundle.open(typed.path), request(), quiet)
    build_engines(Bundle.open(typed.path), request(batch=BatchRange(1, 1, 2)), quiet)
    bundle = Bundle.open(typed.path)
    assert len(bundle.engines()) == 4
    assert {entry.batch for entry in bundle.engines(precision="fp32")} == {(1, 1, 2)}


def test_two_builds_at_a_time_both_stay(typed):
    """Each began with a description without the other."""
    build_engines(typed, request("fp16"), quiet)
    build_engines(typed, request("int8"), quiet)
    assert len(Bundle.open(typed.path).engines()) == 4


def replace_file(bundle: Bundle, name: str) -> None:
    (bundle.path / name).write_bytes(b"other")
    files = {**bundle.manifest.files, name: FileRecord.of(bundle.path / name)}
    update_manifest(bundle, dataclasses.replace(bundle.manifest, files=files))


def test_graphs_that_were_replaced_meanwhile_get_no_engines(typed):
    def change(share: float, what: str) -> None:
        if what.startswith("refine") and (typed.path / "ee.fp16.onnx").read_bytes() != b"other":
            replace_file(typed, "ee.fp16.onnx")

    with pytest.raises(BundleIntegrityError, match=r"while it was built: ee\.fp16\.onnx\.\nBuild"):
        build_engines(typed, request("fp16"), change)
    assert Bundle.open(typed.path).engines() == ()
    assert not (typed.path / "engines").exists()


def test_what_was_added_meanwhile_is_no_matter(typed):
    def change(share: float, what: str) -> None:
        replace_file(typed, "notes")

    build_engines(typed, request(), change)
    assert "notes" in Bundle.open(typed.path).manifest.files


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_nobody_else_changes_the_bundle_while_engines_move_in(typed, monkeypatch):
    def watched(bundle, staging, manifest):
        with folder_lock(bundle.path, wait=False) as is_free:
            assert not is_free
        return publish(bundle, staging, manifest)

    monkeypatch.setattr(build, "publish", watched)
    build_engines(typed, request(), quiet)
    assert len(Bundle.open(typed.path).engines()) == 2


def test_the_log_stays_in_the_bundle(typed):
    bundle, entries = build_engines(typed, request(workspace_mib=64), quiet)
    name = entries[0].file.replace(".engine", ".log")
    assert name in bundle.manifest.files
    log = (bundle.path / name).read_text()
    assert f"TensorRT-RTX {rtx.__version__}" in log
    assert "{'workspace_mib': 64}" in log
    assert "[INFO]" in log
    assert str(bundle.path) not in log


def test_progress_only_rises(typed):
    told: list[tuple[float, str]] = []
    build_engines(typed, request(), lambda *step: told.append(step))
    for number, role in enumerate(("early_exit", "refine")):
        shares = [2 * share - number for share, what in told if what.startswith(f"{role}: ")]
        assert len(shares) > 10
        assert shares == sorted(shares)
        assert 0 <= shares[0] < 0.3
        assert 0.7 < shares[-1] <= 1


def test_ctrl_c_leaves_the_bundle_as_it_was(typed, ctrl_c):
    before = snapshot(typed.path)

    def press(share: float, what: str) -> None:
        if what.startswith("refine"):
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_engines(typed, request(), press)
    assert signal.getsignal(signal.SIGINT) is handler
    assert snapshot(typed.path) == before
    assert Bundle.open(typed.path).engines() == ()


_TERMINATED = """
import os, signal, sys
from pathlib import Path
from sacvit_deploy.bundle import Bundle
from sacvit_deploy.engines.build import build_engines
from sacvit_deploy.engines.engine_request import EngineRequest

def terminate(share, what):
    if what.startswith("refine"):
        os.kill(os.getpid(), signal.SIGTERM)

build_engines(Bundle.open(sys.argv[1]), EngineRequest("fp32", "tensorrt-rtx"), terminate)
"""


def test_sigterm_leaves_the_bundle_as_it_was(typed):
    """Runs in its own process, which the signal would end if it were not caught."""
    before = snapshot(typed.path)
    command = [sys.executable, "-c", _TERMINATED, str(typed.path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stderr.rstrip().endswith(f"KeyboardInterrupt: {signal.SIGTERM.value}")
    assert snapshot(typed.path) == before


def test_a_builder_is_gone_before_the_next_one_starts(typed, monkeypatch):
    builders: list[subprocess.Popen[bytes]] = []

    def started(*arguments, **options):
        assert all(builder.returncode is not None for builder in builders)
        builders.append(popen(*arguments, **options))
        return builders[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", started)
    build_engines(typed, request(), quiet)
    assert len(builders) == 2
    assert builders[-1].returncode is not None


def test_a_callback_that_fails_ends_the_build_and_not_the_process(typed):
    def fail(*_: object) -> None:
        raise ValueError("nobody looks")

    with pytest.raises(ValueError, match="nobody looks"):
        build_engines(typed, request(), fail)
    assert not list(typed.path.glob(".*"))


@pytest.mark.parametrize("full_at", ["ee", "sac", "log"])
def test_a_full_disk_leaves_the_bundle_as_it_was(typed, monkeypatch, full_at):
    before = snapshot(typed.path)

    def fill(file: Path, text: str, **_: object) -> None:
        file.write_bytes(text.encode()[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    def full(library, order, report):
        if order.plan.name.startswith(full_at):
            fill(order.plan, "half an engine")
        return plan.build_plan(library, order, report)

    monkeypatch.setattr(build, "build_plan", full)
    if full_at == "log":
        monkeypatch.setattr(Path, "write_text", fill)
    with pytest.raises(BundleError, match=r"No space left on device\.\n.*space left on the disk"):
        build_engines(typed, request(), quiet)
    monkeypatch.undo()
    assert snapshot(typed.path) == before
    Bundle.open(typed.path)


def test_a_failure_while_moving_in_leaves_the_old_engines(typed, monkeypatch):
    before, _ = build_engines(typed, request(), quiet)
    replace, calls = os.replace, []

    def fail(source, target):
        calls.append(target)
        if str(target).endswith("sac.fp32.tensorrt-rtx-2.engine"):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(BundleError, match="Input/output error"):
        build_engines(Bundle.open(typed.path), request(batch=BatchRange(1, 1, 2)), quiet)
    monkeypatch.undo()
    assert Bundle.open(typed.path).engines() == before.engines()
    assert before.damaged_engine_files() == {}


def test_a_new_engine_takes_the_place_of_the_old_one_in_one_step(typed, monkeypatch):
    """Until `bundle.json` names the new engines it names the old ones, which are whole."""
    before, _ = build_engines(typed, request(batch=BatchRange(1, 1, 2)), quiet)
    seen, replace = [], os.replace

    def watched(source, target):
        replace(source, target)
        now = read_bundle(typed.path, {}, check_hashes=True)
        assert now.damaged_engine_files() == {}
        seen.append([engine.batch[-1] for engine in now.engines()])

    monkeypatch.setattr(os, "replace", watched)
    build_engines(before, request(batch=BatchRange(1, 1, 4)), quiet)
    assert set(map(tuple, seen)) == {(2, 2), (4, 4)}
    names = sorted(f.name for f in (typed.path / "engines").iterdir())
    assert names == sorted(
        f"{stem}.fp32.tensorrt-rtx-2.{suffix}"
        for stem in ("ee", "sac")
        for suffix in ("engine", "log")
    )
    again, _ = build_engines(Bundle.open(typed.path), request(), quiet)
    assert again.engines()[0].file == "engines/ee.fp32.tensorrt-rtx.engine"


def test_what_the_builder_says_is_in_the_error(typed, monkeypatch):
    """Only the builder notices that the shapes are not those of this graph."""
    shape = (1, 3, 7, 7)
    monkeypatch.setattr(build, "_shapes", lambda *_: {"image": (shape, shape, shape)})
    with pytest.raises(EngineError, match=r"could not build .*ee\.onnx:\n  .*profile"):
        build_engines(typed, request(), quiet)


def test_an_input_without_shapes_is_an_error(typed, monkeypatch):
    monkeypatch.setattr(build, "_shapes", lambda *_: {"picture": ((1,), (1,), (1,))})
    with pytest.raises(EngineError, match=r"could not build .*ee\.onnx:\n  .*picture"):
        build_engines(typed, request(), quiet)


@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_a_file_that_is_no_graph_is_refused(typed, content):
    (typed.path / "ee.onnx").write_bytes(content)
    with pytest.raises(EngineError, match=r"(cannot read .*ee\.onnx:\n|is not fp32)"):
        build_engines(typed, request(), quiet)


def test_by_default_rtx_builds_for_the_gpu_here_or_for_all_recent_ones(typed, machine):
    _, entries = build_engines(typed, request(), quiet)
    assert entries[0].compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
    assert (entries[0].gpu, entries[0].multiprocessors) == ("", 0)
    machine(ADA)
    assert build.check_request(request()).compute_capabilities == ("8.9",)


@pytest.mark.parametrize("target", ["8.7", "9.0", "5.0"])
def test_rtx_does_not_build_for_every_gpu(typed, target):
    with pytest.raises(EngineError, match=rf"{target}; it knows 8.0, 8.6, 8.9, 12.0, 12.1\."):
        build_engines(typed, request(compute_capabilities=(target,)), quiet)


def test_rtx_says_why_it_does_not_build_for_turing(typed, machine):
    says = r"capability 7\.5; it knows 8.0, .*no FP32 matrix product for 7\.5"
    with pytest.raises(EngineError, match=says):
        build_engines(typed, request(compute_capabilities=("7.5", "8.6")), quiet)
    machine(Machine("linux-x86_64", "13.0", (Gpu("RTX 2080", "7.5", 8 << 30),)))
    with pytest.raises(EngineError, match=says + r".*\n.*--runtime tensorrt "):
        build_engines(typed, request(), quiet)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ({"timing_cache": Path("cache")}, "--timing-cache"),
        ({"version_compatible": True}, "--version-compatible"),
        ({"hardware_compatibility": "ampere-plus"}, "--hardware-compatibility"),
    ],
)
def test_rtx_says_what_it_does_not_have(typed, option, name):
    with pytest.raises(EngineError, match=f"TensorRT-RTX has no {name}"):
        build_engines(typed, request(**option), quiet)


def test_tensorrt_that_is_not_installed_is_named(typed, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"sacvit-deploy\[tensorrt\]"):
        build_engines(typed, request(backend="tensorrt"), quiet)


def test_nodes_kept_on_purpose_are_not_held_against_a_graph(typed):
    planted = typed.graph("early_exit", "fp16")
    write_typed_graph(typed.path / planted.file, planted, "int8")
    shares: dict[Any, dict[str, float]] = {"early_exit": {"half": 0.02}, "refine": {"half": 1.0}}
    record = PrecisionRecord(
        data="pictures",
        data_sha256="",
        pictures=9,
        seed=0,
        kept_in_fp32={"early_exit": ("first",), "refine": ()},
        agreement=Agreement(9, 0.0, 1.0, 1.0, 0.0),
        eta=0.5,
        weight_shares=shares,
        linear_weight_shares=shares,
        tools={},
    )
    manifest = dataclasses.replace(typed.manifest, precisions={"fp16": record})
    bundle = dataclasses.replace(typed, manifest=manifest)
    assert build._kept_share(bundle, bundle.graph("early_exit", "fp16")) == 0.02
    assert build._kept_share(bundle, bundle.graph("refine", "fp16")) is None
    with pytest.raises(EngineError, match="is not fp16"):  # no half at all is never enough
        build_engines(bundle, request("fp16"), quiet)
