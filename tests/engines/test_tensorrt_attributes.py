"""Every attribute of TensorRT that is used exists in both libraries.

The installed TensorRT-RTX is asked itself. TensorRT cannot be installed without its libraries of
several gigabytes, so its published type stubs are read; `make test` puts them beside the packages.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import sacvit_deploy.engines

FILES = (
    "plan_worker.py",
    "plan_inspection.py",
    "tensorrt_library.py",
)
MODULE_NAMES = {"trt", "module"}
# The name of a variable to the class of what is in it; the code keeps to these names.
CLASSES = {
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "network": "INetworkDefinition",
    "runtime": "Runtime",
    "tensor": "ITensor",
    "trt_layer": "ILayer",
}
# Used only behind `Library.is_rtx`.
ONLY_RTX = {"BuilderFlag.REQUIRE_USER_ALLOCATION", "ComputeCapability"}
# Fields of the subclass that a layer is turned into first.
OF_SUBCLASS = {
    f"ILayer.{name}": f"IConvolutionLayer.{name}"
    for name in ("kernel_size_nd", "num_groups", "num_output_maps")
}
# What the bindings call themselves in, and what every Python object has.
NOT_THEIRS = {"__version__", "ILogger.__init__", "IProgressMonitor.__init__", "ILayer.__class__"}

_STUBS = Path(sys.prefix) / "stubs" / "tensorrt_bindings"


class Use(NamedTuple):
    name: str
    where: str


def _uses(file: Path) -> set[Use]:
    """Dotted names such as `BuilderFlag.VERSION_COMPATIBLE` and `Builder.create_network`."""
    found = set()
    tree = ast.parse(file.read_text())
    errors = {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = _dotted(node, errors)
            if name:
                found.add(Use(OF_SUBCLASS.get(name, name), f"{file.name}:{node.lineno}"))
    return {use for use in found if use.name not in NOT_THEIRS}


def _dotted(node: ast.Attribute, errors: set[str | None]) -> str | None:
    names = [node.attr]
    value = node.value
    while isinstance(value, ast.Attribute):
        names.insert(0, value.attr)
        value = value.value
    if not isinstance(value, ast.Name):
        return None
    names.insert(0, value.id)
    for position, name in enumerate(names[:-1]):
        if name in MODULE_NAMES:
            return ".".join(names[position + 1 : position + 3])
    receiver = names[-2].removeprefix("_")
    if receiver not in CLASSES or (receiver == "error" and names[-1] in {"problem", "fix", "name"}):
        return None
    return f"{CLASSES[receiver]}.{names[-1]}"


@pytest.fixture(scope="module")
def uses() -> set[Use]:
    folder = Path(sacvit_deploy.engines.__file__).parent
    return {use for name in FILES for use in _uses(folder / name)}


def test_uses_are_found(uses):
    """Guards the walk itself."""
    names = {use.name for use in uses}
    assert {
        "BuilderFlag.TF32",
        "ComputeCapability.__members__",
        "ICudaEngine.create_engine_inspector",
        "IConvolutionLayer.num_groups",
        "ILogger.VERBOSE",
        "INetworkDefinition.get_layer",
        "MemoryPoolType.WORKSPACE",
        "Runtime.deserialize_cuda_engine",
    } <= names


def test_they_exist_in_tensorrt_rtx(uses):
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")
    missing = [use for use in uses if not _exists(trt, use.name)]
    assert missing == []


def _exists(module: object, name: str) -> bool:
    try:
        functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        return False
    return True


@pytest.fixture(scope="module")
def stubs() -> dict[str, set[str]]:
    """Class to the names in it, and `""` to those of the module."""
    if not _STUBS.is_dir():
        pytest.skip(f"needs tensorrt-stubs in {_STUBS.parent}; make test installs them there")
    known: dict[str, set[str]] = {"": set()}
    bases: dict[str, str] = {}
    for file in _STUBS.glob("*.pyi"):
        # Read by line: some signatures in these generated files are no valid Python.
        owner = ""
        for line in file.read_text().splitlines():
            if top := re.match(r"(?:class|def) (\w+)(?:\((\w+)\):)?|(\w+):", line):
                owner = top[1] or ""
                known[""].add(owner or top[3])
                known.setdefault(owner, set())
                bases[owner] = top[2] or ""
            elif member := re.match(r"    def (\w+)|    (\w+): |\s+:ivar (\w+):", line):
                known[owner].add(member[1] or member[2] or member[3])
    for name, base in bases.items():
        known[name] = known[name] | known.get(base, set()) if name else known[name]
    return known


def test_they_exist_in_tensorrt_10(uses, stubs):
    assert "EXPLICIT_BATCH" in stubs["NetworkDefinitionCreationFlag"], "these are TensorRT 10's"
    missing = []
    for use in uses:
        owner, _, member = use.name.rpartition(".")
        if use.name in ONLY_RTX or owner in ONLY_RTX:
            assert member not in stubs.get(owner, ())
        elif member not in stubs.get(owner, set()):
            missing.append(use)
    assert missing == []


def test_what_tensorrt_11_took_away_is_not_used(uses):
    gone = {"FP16", "INT8", "BF16", "FP8", "EXPLICIT_BATCH", "platform_has_fast_fp16"}
    gone |= {"platform_has_fast_int8", "int8_calibrator", "max_workspace_size", "build_engine"}
    assert {use for use in uses if use.name.rpartition(".")[2] in gone} == set()
