"""The online half works where torch, onnx and TensorRT are not installed.

Every check runs in a fresh interpreter: this one has imported them for other tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sacvit_deploy

# Needs torch by design. Everything else, also what is added later, must do without.
OFFLINE = ("model", "training", "exporters")
OFFLINE_MODULES = tuple(
    f"sacvit_deploy.comparison.{name}" for name in ("graphs", "layers", "torch_network")
)
ABSENT = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx_graphsurgeon",
    "safetensors",
    "tensorrt",
    "tensorrt_rtx",
)

_IMPORT_EACH = """
import importlib, importlib.abc, json, sys

names, absent = json.loads(sys.argv[1])

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
failures = {}
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failures[name] = str(error)
print(json.dumps(failures))
"""

_LOADED_AFTER = """
import json, runpy, sys
from contextlib import redirect_stdout, suppress

with redirect_stdout(sys.stderr), suppress(SystemExit):
    {statement}
print(json.dumps([n for n in ("torch", "onnx", "onnxruntime") if n in sys.modules]))
"""


def _in_fresh_interpreter(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run


def _modules(*, offline: bool) -> list[str]:
    """Dotted names below the package, found as files: asking for them would import packages."""
    package = Path(sacvit_deploy.__file__).parent
    files = [file.relative_to(package.parent) for file in package.rglob("*.py")]
    parts = [file.with_suffix("").parts for file in files if file.name != "__init__.py"]
    parts += [file.parent.parts for file in files if file.name == "__init__.py"]
    names = sorted(".".join(p) for p in parts if len(p) > 1)
    return [n for n in names if (n.split(".")[1] in OFFLINE or n in OFFLINE_MODULES) == offline]


def _import_failures(names: list[str]) -> dict[str, str]:
    run = _in_fresh_interpreter(_IMPORT_EACH, json.dumps([names, ABSENT]))
    failures: dict[str, str] = json.loads(run.stdout)
    return failures


def test_online_modules_import_without_the_offline_libraries() -> None:
    names = _modules(offline=False)
    layers = {name.split(".")[1] for name in names}
    assert {"errors", "libraries", "spec", "bundle", "engines", "runtime"} <= layers
    assert _import_failures(names) == {}


def test_offline_modules_do_not() -> None:
    """Shows that the libraries are really absent in the check above."""
    assert "sacvit_deploy.model.vit" in _import_failures(_modules(offline=True))


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("import sacvit_deploy", ""),
        (
            "sys.argv = ['sacvit-deploy', '--help'];"
            "runpy.run_module('sacvit_deploy.cli', run_name='__main__')",
            "Usage:",
        ),
    ],
    ids=["import", "help"],
)
def test_start_up_loads_nothing_heavy(statement: str, says: str) -> None:
    run = _in_fresh_interpreter(_LOADED_AFTER.format(statement=statement))
    assert says in run.stderr
    assert json.loads(run.stdout) == []
