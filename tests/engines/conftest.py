from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.bundle_changes import new_bundle, write_manifest
from sacvit_deploy.engines import build
from tests.engines.builds import NO_GPU
from tests.engines.engine_bundles import Workplace
from tests.fakes import SAC, fake_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sacvit_deploy.engines.machine import Machine


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle with tiny graphs that ONNX Runtime can run."""
    from tests.engines.tiny_onnx import write_graph  # onnx is not on every machine with a GPU

    with new_bundle(tmp_path / "bundle") as staging:
        for graph in fake_manifest().graphs:
            write_graph(staging / graph.file, graph)
        write_manifest(staging, fake_manifest())
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    return Workplace.make(tmp_path, monkeypatch, SAC)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], None]:
    """Engines are built on a machine without a GPU; returns a function that replaces it."""

    def become(machine: Machine) -> None:
        monkeypatch.setattr(build, "this_machine", lambda: machine)

    become(NO_GPU)
    return become


@pytest.fixture
def typed(tmp_path: Path) -> Bundle:
    """A bundle with graphs of a few nodes in every precision."""
    from tests.engines.typed_onnx import write_typed_bundle

    return write_typed_bundle(tmp_path / "bundle", "fp16", "int8")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C works as in a terminal; a shell lets programs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
