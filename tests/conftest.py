"""Fixtures and hardware skips that every folder of tests uses.

Every export costs seconds, so that each bundle is made once and must not be changed; a test that
changes one takes a copy. torch is imported by the fixtures that need it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from sacvit_deploy.bundle import Bundle
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.model.two_stage import TwoStageViT

    MadeOnce = Callable[[str, Callable[[Path], Bundle]], Bundle]

# The tests run in a process for each core: several threads in each would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_ROOT = Path(__file__).resolve().parents[1]
# What the driver or the board's system image leaves; asking needs no library.
_HARDWARE = {
    # Some containers show the device and not the driver.
    "gpu": (
        ("/proc/driver/nvidia/version", "/dev/nvidiactl"),
        "needs an NVIDIA GPU; no driver is loaded",
    ),
    "jetson": (("/etc/nv_tegra_release",), "needs a Jetson board; this is another machine"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: a long one at the end would leave other cores idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, (evidence, reason) in _HARDWARE.items():
        if item.get_closest_marker(marker) and not any(map(os.path.exists, evidence)):
            pytest.skip(reason)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout, which not everybody has."""
    folder = _ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the reference data in ../shared, which is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """Input, weights and output of the CF-ViT authors' own code."""
    from tests.tiny_models import GOLDEN_FILE

    with np.load(GOLDEN_FILE) as file:
        return dict(file)


@pytest.fixture(scope="session")
def golden_params(golden) -> dict[str, torch.Tensor]:
    import torch

    prefix = "param/"
    return {
        name.removeprefix(prefix): torch.from_numpy(value)
        for name, value in golden.items()
        if name.startswith(prefix)
    }


@pytest.fixture(scope="session")
def golden_config() -> ModelConfig:
    from tests.tiny_models import GOLDEN_CF

    return GOLDEN_CF


@pytest.fixture(scope="session")
def sac_model() -> TwoStageViT:
    from tests.tiny_models import SAC, strong_two_stage

    return strong_two_stage(SAC)


@pytest.fixture(scope="session")
def other_model() -> TwoStageViT:
    """Every choice of the configuration that `sac_model` does not make."""
    from tests.tiny_models import OTHER_CHOICES, strong_two_stage

    return strong_two_stage(OTHER_CHOICES)


@pytest.fixture(scope="session")
def sac_checkpoint(sac_model, tmp_path_factory) -> Path:
    from sacvit_deploy.model.checkpoints import save_checkpoint

    path: Path = tmp_path_factory.mktemp("checkpoints") / "sac.safetensors"
    save_checkpoint(path, sac_model.state_dict(), sac_model.config)
    return path


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> MadeOnce:
    """Make a bundle in the first process of the run that asks for it, for all of them."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def get(name: str, make: Callable[[Path], Bundle]) -> Bundle:
        from sacvit_deploy.bundle import Bundle
        from sacvit_deploy.files import folder_lock

        own = folder / name
        own.mkdir(exist_ok=True)
        with folder_lock(own):
            if not (own / "bundle").exists():
                make(own / "making").path.rename(own / "bundle")
            return Bundle.open(own / "bundle")

    return get


@pytest.fixture(scope="session")
def sac_host(sac_checkpoint, made_once: MadeOnce) -> Bundle:
    """`sac_model`, tokens chosen by the host, float input."""
    from sacvit_deploy.exporters.export import export_bundle

    return made_once("sac_host", lambda path: export_bundle(sac_checkpoint, path))


@pytest.fixture(scope="session")
def sac_graph(sac_checkpoint, made_once: MadeOnce) -> Bundle:
    """`sac_model`, tokens chosen in the graph, pixels as input."""
    from sacvit_deploy.exporters.export import ExportOptions, export_bundle

    options = ExportOptions(selection="graph", input_kind="uint8")
    return made_once("sac_graph", lambda path: export_bundle(sac_checkpoint, path, options))


@pytest.fixture(scope="session")
def other_graph(other_model, made_once: MadeOnce) -> Bundle:
    """`other_model`, tokens chosen in the graph, float input."""
    from sacvit_deploy.exporters.export import ExportOptions, export_bundle

    options = ExportOptions(selection="graph")
    return made_once("other_graph", lambda path: export_bundle(other_model, path, options))


@pytest.fixture(scope="session")
def windowed_graph(made_once: MadeOnce) -> Bundle:
    """LF-ViT, tokens chosen in the graph, float input."""
    from sacvit_deploy.exporters.export import ExportOptions, export_bundle
    from tests.tiny_models import WINDOWED, strong_two_stage

    options = ExportOptions(selection="graph")
    model = strong_two_stage(WINDOWED)
    return made_once("windowed_graph", lambda path: export_bundle(model, path, options))


@pytest.fixture(scope="session")
def lv_pixels(made_once: MadeOnce) -> Bundle:
    """CF-ViT on LV-ViT, tokens chosen by the host, pixels as input."""
    from sacvit_deploy.exporters.export import ExportOptions, export_bundle
    from tests.tiny_models import CF_LV, strong_two_stage

    options = ExportOptions(input_kind="uint8")
    model = strong_two_stage(CF_LV)
    return made_once("lv_pixels", lambda path: export_bundle(model, path, options))


@pytest.fixture(scope="session")
def golden_checkpoint(golden_params, tmp_path_factory) -> Path:
    """The golden weights as the CF-ViT authors publish theirs."""
    import torch

    path: Path = tmp_path_factory.mktemp("golden") / "cf_vit.pth"
    torch.save({"model": golden_params, "epoch": 3, "args": argparse.Namespace(lr=1)}, path)
    return path


@pytest.fixture(scope="session")
def golden_bundle(golden_checkpoint, made_once: MadeOnce) -> Bundle:
    from sacvit_deploy.exporters.export import ExportOptions, export_bundle
    from tests.tiny_models import GOLDEN_CF

    options = ExportOptions(GOLDEN_CF)
    return made_once("golden", lambda path: export_bundle(golden_checkpoint, path, options))


@pytest.fixture(scope="session")
def dense_bundle(made_once: MadeOnce) -> Bundle:
    """Random weights, one stage."""
    from sacvit_deploy.exporters.export import ExportOptions, export_bundle
    from tests.tiny_models import DENSE

    options = ExportOptions(DENSE, seed=5)
    return made_once("dense", lambda path: export_bundle(None, path, options))


@pytest.fixture(scope="session")
def semantic_bundle(made_once: MadeOnce) -> Bundle:
    """STViT with strong random weights."""
    from sacvit_deploy.exporters.export import export_bundle
    from tests.tiny_models import SEMANTIC, strong_model

    model = strong_model(SEMANTIC)
    return made_once("semantic", lambda path: export_bundle(model, path))


@pytest.fixture(scope="session")
def gated_bundle(made_once: MadeOnce) -> Bundle:
    """SViT with strong random weights, all tokens computed."""
    from sacvit_deploy.exporters.export import export_bundle
    from tests.tiny_models import GATED, strong_model

    model = strong_model(GATED)
    return made_once("gated", lambda path: export_bundle(model, path))


@pytest.fixture(scope="session")
def backbone_bundle(made_once: MadeOnce) -> Bundle:
    """STViT-R with random weights, for features of pictures whose windows need padding."""
    from sacvit_deploy.exporters.export import ExportOptions, export_bundle
    from tests.tiny_models import BACKBONE

    return made_once("backbone", lambda path: export_bundle(None, path, ExportOptions(BACKBONE)))
