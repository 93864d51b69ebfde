"""What a measurement was made with: without it a number means nothing."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import sacvit_deploy
from sacvit_deploy.engines.machine import jetson_release, this_machine
from sacvit_deploy.engines.onnxruntime_providers import onnxruntime
from sacvit_deploy.engines.tensorrt_flavour import RUNTIMES, load_flavour

if TYPE_CHECKING:
    from sacvit_deploy.runtime.pipeline import Pipeline

_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Setting:
    """Where numbers come from.

    Attributes:
        bundle: Name of its folder.
        network: Family and size, in words.
        weights: Where they come from, in words.
        data: Name of the data set.
        precision: Of the graphs.
        runtime: What computed them.
        provider: The same, as the runtime names it.
        device: Name of the GPU or CPU.
        versions: Of the libraries, by name.
    """

    bundle: str
    network: str
    weights: str
    data: str
    precision: str
    runtime: str
    provider: str
    device: str
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def describe_setting(pipeline: Pipeline, bundle: Path, data: Path) -> Setting:
    """Ask the pipeline and the machine.

    Args:
        pipeline: That measures.
        bundle: Its folder.
        data: The data set.
    """
    config, opened = pipeline.manifest.config, pipeline.opened
    height, width = config.image_size
    return Setting(
        bundle=bundle.resolve().name,
        network=f"{config.family}, {height}x{width} px, patch {config.patch_size}, width "
        f"{config.embed_dim}, depth {config.depth}, {config.num_classes} classes",
        weights=", ".join(f"{k} {v}" for k, v in pipeline.manifest.weights.items()),
        data=data.resolve().name,
        precision=opened.precision,
        runtime=opened.backend,
        provider=opened.provider,
        device=_cpu() if opened.provider.startswith("CPU") else _accelerator(),
        versions=_versions(opened.backend),
    )


def _versions(runtime: str) -> dict[str, str]:
    found = {"sacvit-deploy": sacvit_deploy.__version__, "python": platform.python_version()}
    if runtime == "onnxruntime":
        found[runtime] = str(onnxruntime().__version__)
    for name in RUNTIMES:
        if name == runtime:
            found[name] = load_flavour(name).version
    return found | {"numpy": np.__version__}


def _accelerator() -> str:
    gpu = this_machine().current_gpu
    board = jetson_release()
    if board is not None and board.board:
        return board.board
    return gpu.name if gpu else _cpu()


def _cpu() -> str:
    """The processor's name where the system tells, else its architecture."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    if names:
        return f"{names[0]}, {len(names)} cores"
    return platform.processor() or platform.machine()
