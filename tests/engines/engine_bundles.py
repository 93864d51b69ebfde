"""Bundles with engines that the fake of TensorRT can run, on a machine with the fake GPU."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.bundle_changes import new_bundle, write_manifest
from sacvit_deploy.engines import compatibility
from sacvit_deploy.engines.machine import Gpu as MachineGpu
from sacvit_deploy.engines.machine import Machine
from sacvit_deploy.engines.registry import open_sessions
from sacvit_deploy.records import EngineEntry, EngineFlags
from tests.engines.fake_cuda import Gpu, fake_cuda
from tests.engines.fake_tensorrt import fake_tensorrt, plan_for
from tests.fakes import SAC, fake_manifest

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from sacvit_deploy.engines.registry import OpenedSessions
    from sacvit_deploy.engines.session import SessionOptions
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.records import GraphEntry
    from sacvit_deploy.spec import EngineBackend, Selection

VERSION = {"tensorrt": "10.3.0", "tensorrt-rtx": "1.7.1.116"}
HERE = Machine("linux-x86_64", "13.0", (MachineGpu("Imaginary", "8.6", 1 << 34),))


@dataclass
class Workplace:
    """A machine with the fake GPU and both fakes of TensorRT, and a folder for bundles.

    Attributes:
        has_graphs: Whether the bundles have ONNX graphs that can run; that takes onnx.
    """

    folder: Path
    gpu: Gpu
    modules: dict[str, Any]
    has_graphs: bool = True

    @classmethod
    def make(cls, folder: Path, monkeypatch: pytest.MonkeyPatch, config: ModelConfig) -> Workplace:
        gpu = Gpu()
        modules = {
            "tensorrt": fake_tensorrt(gpu, config, version=VERSION["tensorrt"]),
            "tensorrt-rtx": fake_tensorrt(gpu, config, rtx=True, version=VERSION["tensorrt-rtx"]),
        }
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake_cuda(gpu))
        workplace = cls(folder, gpu, modules)
        workplace.install(monkeypatch)
        return workplace

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the modules where they are imported from."""
        for module in self.modules.values():
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(compatibility, "this_machine", lambda: HERE)
        monkeypatch.setattr(compatibility, "library_cuda", lambda _: None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(self.folder / "cache"))

    def library(self, backend: EngineBackend = "tensorrt") -> Any:
        return self.modules[backend].library

    def bundle(
        self,
        backend: EngineBackend = "tensorrt",
        *,
        batch: tuple[int, int, int] = (1, 4, 8),
        selection: Selection = "graph",
        entry: dict[str, Any] | None = None,
        plan: dict[str, Any] | None = None,
        roles: tuple[str, ...] = ("early_exit", "refine"),
    ) -> Bundle:
        """A bundle with an engine for some graphs; `entry` and `plan` override fields of each."""
        manifest = fake_manifest(SAC, selection)
        graphs = [graph for graph in manifest.graphs if graph.role in roles]
        engines = [_entry(graph, backend, batch, entry or {}) for graph in graphs]
        manifest = dataclasses.replace(manifest, engines=tuple(engines))
        path = self.folder / f"{backend}-{selection}"
        with new_bundle(path) as staging:
            (staging / "engines").mkdir()
            for graph in manifest.graphs:
                self._write_graph(staging / graph.file, graph)
            for graph, engine in zip(graphs, engines, strict=True):
                content = plan_for(graph, SAC, batch, **(plan or {}))
                (staging / engine.file).write_bytes(content)
            write_manifest(staging, manifest)
        return Bundle.open(path)

    def _write_graph(self, path: Path, graph: GraphEntry) -> None:
        if not self.has_graphs:
            path.write_bytes(b"no graph")
            return
        from tests.engines.tiny_onnx import write_graph

        write_graph(path, graph)

    def open(
        self, bundle: Bundle, backend: str = "tensorrt", options: SessionOptions | None = None
    ) -> OpenedSessions:
        return open_sessions(bundle, backend=backend, options=options)


def _entry(
    graph: GraphEntry, backend: EngineBackend, batch: tuple[int, int, int], changed: dict[str, Any]
) -> EngineEntry:
    values: dict[str, Any] = {
        "role": graph.role,
        "precision": "fp32",
        "file": f"engines/{graph.role}.fp32.{backend}.engine",
        "runtime": backend,
        "runtime_version": VERSION[backend],
        "cuda_version": "",
        "compute_capabilities": ("8.6",),
        "os": HERE.os,
        "batch": batch,
        "precision_share": {"half": 0.0, "int8": 0.0, "float": 1.0},
        "flags": EngineFlags(),
        "build_s": 1.0,
        "bytes": 1,
    }
    return EngineEntry(**{**values, **changed})
