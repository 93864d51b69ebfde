from __future__ import annotations

import importlib.metadata
import platform
import sys
from types import ModuleType

import pytest

import sacvit_deploy
from sacvit_deploy.errors import MissingDependencyError
from sacvit_deploy.libraries import _EXTRA_OF, own_versions, require, version, versions


def test_what_is_there_is_imported():
    import numpy

    assert require("numpy.linalg", "Anything") is numpy.linalg


@pytest.mark.parametrize("module", _EXTRA_OF)
def test_what_is_missing_names_its_extra(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError) as refused:
        require(module, "Something")
    assert refused.value.problem == f"Something needs {module}, which is not installed."
    assert refused.value.fix.endswith(f"'sacvit-deploy[{_EXTRA_OF[module]}]'")


def test_the_extras_exist():
    from pathlib import Path

    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    for extra in set(_EXTRA_OF.values()):
        assert f"\n{extra} = [" in text


def test_a_module_nobody_listed_is_a_mistake_of_the_package():
    with pytest.raises(ValueError, match="'no_such_library' is not in the table"):
        require("no_such_library.part", "Something")


def test_a_broken_library_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "onnxscript.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxscript", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        require("onnxscript", "Something")


def test_a_version_is_that_of_the_installed_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx_graphsurgeon", None)
    wanted = {name: importlib.metadata.version(name) for name in ("onnx-graphsurgeon", "numpy")}
    assert versions("onnx-graphsurgeon", "no-such-library", "numpy") == wanted
    assert version("no-such-library") is None


def test_what_is_loaded_counts_more_than_what_is_installed(monkeypatch):
    """A wheel of another name may have brought it, as onnxruntime-gpu does."""
    module = ModuleType("no_such_library")
    monkeypatch.setitem(sys.modules, "no_such_library", module)
    assert version("no-such-library") is None
    module.__dict__["__version__"] = "1.2"
    assert version("no-such-library") == "1.2"


def test_own_versions():
    assert own_versions() == {
        "sacvit-deploy": sacvit_deploy.__version__,
        "python": platform.python_version(),
    }
