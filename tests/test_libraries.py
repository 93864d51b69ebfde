from __future__ import annotations

import sys

import pytest

from sacvit_deploy.errors import MissingDependencyError
from sacvit_deploy.libraries import _EXTRA_OF, require


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
