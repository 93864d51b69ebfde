from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.bundle_changes import new_bundle, write_manifest
from tests.engines.engine_bundles import Workplace
from tests.fakes import SAC, fake_manifest

if TYPE_CHECKING:
    from pathlib import Path


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
