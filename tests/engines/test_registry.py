from __future__ import annotations

import sys

import pytest

from sacvit_deploy.engines import registry
from sacvit_deploy.engines.registry import backends, open_sessions
from sacvit_deploy.errors import BundleError, EngineError, MissingDependencyError


@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_onnxruntime_opens_every_role(bundle, backend) -> None:
    opened = open_sessions(bundle, backend=backend)
    assert opened.backend == "onnxruntime"
    assert list(opened.sessions) == ["early_exit", "refine"]
    assert opened.provider == opened.sessions["refine"].provider


def test_auto_says_why_the_others_were_not_taken(bundle) -> None:
    skipped = open_sessions(bundle).skipped
    assert set(skipped) == set(backends()) - {"onnxruntime"}
    assert "has no tensorrt engine for the early_exit graph" in skipped["tensorrt"]


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_engine_says_how_to_build_it(bundle, backend) -> None:
    with pytest.raises(EngineError, match=f"build-engine .* --runtime {backend}$"):
        open_sessions(bundle, backend=backend)


def test_an_unknown_backend_is_refused(bundle) -> None:
    with pytest.raises(EngineError, match=r"'openvino'\.\nChoose auto, tensorrt"):
        open_sessions(bundle, backend="openvino")


def test_a_missing_runtime_is_named_when_asked_for(bundle, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="onnxruntime"):
        open_sessions(bundle, backend="onnxruntime")
    with pytest.raises(EngineError, match=r"No runtime can run(.|\n)*onnxruntime: Running"):
        open_sessions(bundle)


def test_a_precision_that_is_not_there_is_refused(bundle) -> None:
    with pytest.raises(BundleError, match="no early_exit graph in int8"):
        open_sessions(bundle, backend="onnxruntime", precision="int8")


def test_auto_takes_the_first_that_works(bundle, monkeypatch) -> None:
    table = {"fast": backends()["onnxruntime"], "slow": backends()["tensorrt"]}
    monkeypatch.setattr(registry, "backends", lambda: table)
    opened = open_sessions(bundle)
    assert (opened.backend, opened.skipped) == ("fast", {})
