"""Names of models of timm. The functions, messages and values are those of timm 1.0.31."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

import sacvit_deploy
from sacvit_deploy.bundle import Bundle
from sacvit_deploy.errors import CheckpointError, ConfigError, SacvitDeployError
from sacvit_deploy.exporters.preprocessing import PreprocessingRequest
from sacvit_deploy.exporters.timm_models import read_source
from sacvit_deploy.families.config import preset
from sacvit_deploy.model.build import random_model
from sacvit_deploy.records import WeightsOrigin
from tests.exporters.test_api import HALF, OfTimm

VIT, DEIT = "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "deit_tiny_patch16_224"
NAMES = ["deit_tiny_patch16_224", "resnet50", "vit_tiny_patch16_224"]
CFG = {"mean": HALF, "std": HALF, "crop_pct": 0.9, "interpolation": "bicubic"}
CFG |= {"input_size": (3, 224, 224), "crop_mode": "center", "num_classes": 1000}
CONFIG = preset("deit_tiny_patch16_224").replace(num_classes=1000)


def made(name: str, pretrained: bool = False) -> nn.Module:
    """`timm.create_model` where the hub can be reached."""
    assert pretrained
    architecture, _, tag = name.removeprefix("hf-hub:timm/").partition(".")
    if tag == "nope":
        raise RuntimeError(f"Invalid pretrained tag ({tag}) for {architecture}.")
    if architecture == "resnet50":
        return nn.Sequential(nn.Conv2d(3, 64, 7))
    return OfTimm(CONFIG, **CFG)


@pytest.fixture
def timm(monkeypatch) -> Any:
    fake: Any = ModuleType("timm")
    fake.__version__ = "1.0.31"
    fake.is_model = lambda name: name.partition(".")[0] in NAMES
    fake.list_models = lambda: NAMES
    fake.create_model = made
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


@pytest.mark.parametrize("name", [VIT, DEIT, f"hf-hub:timm/{VIT}", f"hf_hub:timm/{VIT}"])
def test_a_name_gives_weights_and_preprocessing(timm, name):
    source = read_source(Path(name))
    assert source.preprocessing.fields == {
        "mean": HALF,
        "std": HALF,
        "crop_ratio": 0.9,
        "interpolation": "bicubic",
        "fit": "crop",
    }
    wanted = random_model(CONFIG, 0).state_dict()
    assert source.checkpoint.tensors.keys() == wanted.keys()
    assert source.checkpoint.origin == WeightsOrigin("model", file=f"{name} of timm 1.0.31")


def test_the_preset_is_found_and_what_is_asked_for_counts_more_than_timm(timm, tmp_path):
    asked = PreprocessingRequest(std=(0.25,))
    sacvit_deploy.export(DEIT, tmp_path / "b", preprocessing=asked)
    manifest = Bundle.open(tmp_path / "b").manifest
    assert manifest.config == CONFIG
    spec = manifest.preprocessing
    assert (spec.mean, spec.std, spec.crop_ratio) == (HALF, (0.25,) * 3, 0.9)
    weights = f"origin model, file {DEIT} of timm 1.0.31, storage fp32"
    assert str(manifest.weights) == weights


def test_a_file_of_that_name_is_a_file(timm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEIT).write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=f"{DEIT} "):
        sacvit_deploy.export(DEIT, "bundle")


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("deit_tinny_patch16_224", CheckpointError, r"no model of that name.\nDid you mean deit_t"),
        ("zzz", CheckpointError, r"1\.0\.31 has no model of that name.\nName a checkpoint file"),
        (f"{DEIT}.nope", CheckpointError, r"weights of .*: Invalid pretrained tag \(nope\)"),
        ("resnet50", ConfigError, "resnet50 of timm .* No preset has just its tensors"),
        ("model.pth", CheckpointError, r"^There is no file model\.pth\.\nCheck the path"),
        ("no/such", CheckpointError, r"^There is no file no/such\.\nCheck the path"),
        ("https://host/a.pth", CheckpointError, "is a URL"),
    ],
)
def test_names_that_cannot_be_exported(timm, monkeypatch, tmp_path, name, error, says):
    timm.create_model = lambda name, pretrained: with_cfg(made(name, pretrained))
    with pytest.raises(error, match=says):
        sacvit_deploy.export(name, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def with_cfg(model: nn.Module) -> nn.Module:
    model.pretrained_cfg = CFG  # type: ignore[assignment]
    return model


def refused(name: str, output: Path) -> str:
    with pytest.raises(SacvitDeployError) as error:
        sacvit_deploy.export(name, output)
    return str(error.value)


def test_a_failed_download_is_one_message_with_its_reason(timm, tmp_path):
    def offline(name: str, pretrained: bool) -> nn.Module:
        raise OSError("[Errno 101] Network is unreachable\nSome advice.")

    timm.create_model = offline
    said = refused(DEIT, tmp_path / "b")
    assert f"could not load the weights of {DEIT}: [Errno 101] Network is unreachable.\n" in said
    assert "Check the name and the connection" in said


def test_a_bundle_in_the_way_is_told_before_the_download(timm, sac_host):
    timm.create_model = lambda *_, **__: pytest.fail("was downloaded")
    refused(DEIT, sac_host.path)


def test_without_timm_both_ways_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    said = refused(DEIT, tmp_path / "b")
    assert f"There is no file {DEIT}; and timm" in said
    assert "pip install timm" in said


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'torchvision'", name="torchvision"),
        RuntimeError("operator torchvision::nms does not exist"),
    ],
)
def test_a_timm_that_cannot_be_imported_is_one_message(monkeypatch, tmp_path, error):
    monkeypatch.setattr("importlib.import_module", raises_for_timm(error))
    said = refused(DEIT, tmp_path / "b")
    assert f"cannot be imported: {error}." in said
    assert "install the torchvision that belongs to this torch" in said


def raises_for_timm(error: Exception) -> Callable[..., ModuleType]:
    from importlib import import_module

    def imported(name: str, *rest: Any) -> ModuleType:
        if name == "timm":
            raise error
        return import_module(name, *rest)

    return imported
