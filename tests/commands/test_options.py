from __future__ import annotations

import dataclasses
import json

import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.commands import options
from sacvit_deploy.engines import compatibility
from sacvit_deploy.engines.machine import Gpu, Machine
from sacvit_deploy.engines.registry import OpenedSessions
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.samples import sample_pictures
from tests.engines.engine_bundles import Workplace
from tests.fakes import SAC, fake_manifest, fake_sessions

PICTURE = sample_pictures()[0]
SKIPPED = {
    "tensorrt": "The bundle has none.",
    "tensorrt-rtx": "The engine ee does not fit this machine:\n  GPU: none\n  CUDA: too old",
    "onnxruntime CUDA": "This onnxruntime was built without it.",
}
NOTHING, H200 = (), (Gpu("H200", "9.0", 1 << 37),)


@pytest.fixture
def bundle(tmp_path, monkeypatch) -> Bundle:
    """With engines for a GPU that is not here."""
    bundle = Workplace.make(tmp_path, monkeypatch, SAC).bundle(selection="host")
    monkeypatch.setattr(compatibility, "this_machine", lambda: Machine("linux-x86_64", None, ()))
    return bundle


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_who_leaves_the_choice_is_told_what_was_taken_and_why(invoke, bundle, more):
    ran = invoke("run", bundle.path, PICTURE, *more)
    assert ran.code == 0, ran
    taken, *passed_over = ran.err.splitlines()
    assert taken.startswith("computing with onnxruntime in fp32 (")
    assert passed_over[0].startswith("  not tensorrt: The engine ")
    assert "built for compute capability 8.6, here is no GPU" in passed_over[0]
    assert "computing" not in ran.out
    assert not more or json.loads(ran.out)


def test_who_chooses_is_told_nothing(invoke, bundle):
    ran = invoke("run", bundle.path, PICTURE, "--backend", "onnxruntime")
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize(
    ("gpus", "engines", "told"),
    [
        (NOTHING, False, []),
        (H200, False, ["onnxruntime CUDA"]),
        (NOTHING, True, ["tensorrt-rtx"]),
        (H200, True, ["tensorrt-rtx", "onnxruntime CUDA"]),
    ],
)
def test_only_what_one_could_expect_is_named(tmp_path, monkeypatch, gpus, engines, told):
    monkeypatch.setattr(options, "this_machine", lambda: Machine("linux", "13.0", gpus))
    manifest = fake_manifest()
    if engines:
        place = Workplace.make(tmp_path, monkeypatch, SAC)
        built = place.bundle("tensorrt-rtx").manifest.engines
        manifest = dataclasses.replace(manifest, engines=built)
    opened = OpenedSessions("onnxruntime", fake_sessions(SAC), SKIPPED)
    lines = list(options.passed_over_lines(Pipeline(manifest, opened)))
    if told:
        assert lines.pop(0) == f"computing with onnxruntime in fp32 ({opened.provider})"
    assert [line.partition(":")[0].removeprefix("  not ") for line in lines] == told
    assert not engines or lines[0].endswith("does not fit this machine: GPU: none; CUDA: too old")


def test_all_backends_are_named_that_were_measured():
    skipped = {"openvino": "It takes 3.0 ms.", "tensorrt": "It is missing.", "onnxruntime CUDA": ""}
    opened = OpenedSessions("onnxruntime", fake_sessions(SAC), skipped)
    lines = list(options.passed_over_lines(Pipeline(fake_manifest(), opened), "fastest"))
    assert lines[1:] == ["  not openvino: It takes 3.0 ms.", "  not tensorrt: It is missing."]
