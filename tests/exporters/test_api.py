from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sacvit_deploy
from sacvit_deploy.errors import CheckpointError, ConfigError
from sacvit_deploy.families.config import ModelConfig, preset
from sacvit_deploy.model.build import random_model
from sacvit_deploy.samples import sample_pictures

HALF = (0.5, 0.5, 0.5)
FIELDS: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
SMALL = {"image_size": (32, 32), "patch_size": 8, **FIELDS}


class OfTimm(nn.Module):
    """What a model of timm has: layers with DeiT's names, and a configuration."""

    def __init__(self, config: ModelConfig, **cfg: Any) -> None:
        super().__init__()
        for name, part in random_model(config, 0).named_children():
            self.add_module(name, part)
        for name, parameter in random_model(config, 0).named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.pretrained_cfg = cfg


def dense() -> ModelConfig:
    return preset("deit_small_patch16_224").replace(**SMALL)


def logits(bundle) -> np.ndarray:
    with sacvit_deploy.load(bundle.path) as pipeline:
        image = pipeline.preprocess(sample_pictures()[0])[None]
        return pipeline.outcomes(image, eta=1.0)[0].logits


def test_a_module_of_timm_keeps_its_answers_and_its_preprocessing(tmp_path):
    cfg = {"mean": HALF, "std": HALF, "crop_pct": 0.9, "interpolation": "bilinear"}
    model = OfTimm(dense(), **cfg).eval()
    bundle = sacvit_deploy.export(model, tmp_path / "b", preset="deit_small_patch16_224", **SMALL)
    spec = bundle.manifest.preprocessing
    assert (spec.mean, spec.crop_ratio, spec.interpolation) == (HALF, 0.9, "bilinear")
    assert bundle.manifest.weights.origin == "model"
    with sacvit_deploy.load(bundle.path) as pipeline:
        image = pipeline.preprocess(sample_pictures()[0])[None]
    with torch.no_grad():
        wanted = random_model(dense(), 0).eval()(torch.from_numpy(np.asarray(image)))
    np.testing.assert_allclose(logits(bundle), wanted[0].numpy(), rtol=0, atol=1e-5)


def test_a_state_dict_a_file_and_our_model_are_the_same(tmp_path):
    fields: dict[str, Any] = {"embed_dim": 96, "depth": 3, "num_heads": 2, "num_classes": 5}
    config = preset("sac_demo_patch8_64").replace(**fields)
    model = random_model(config, 0)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    sources = (model.state_dict(), tmp_path / "model.pth", str(tmp_path / "model.pth"))
    found = [
        logits(sacvit_deploy.export(each, tmp_path / str(n), preset="sac_demo_patch8_64", **fields))
        for n, each in enumerate(sources)
    ]
    own = sacvit_deploy.export(model, tmp_path / "own", eta=0.25, labels=list("abcde"))
    assert own.manifest.labels == ("a", "b", "c", "d", "e")
    found.append(logits(own))
    for each in found:
        np.testing.assert_array_equal(each, found[0])


def test_the_only_preset_that_fits_is_taken(tmp_path):
    state = random_model(preset("deit_tiny_patch16_224").replace(num_classes=7), 0).state_dict()
    bundle = sacvit_deploy.export(state, tmp_path / "b", labels=_names(tmp_path, 7))
    assert bundle.manifest.config == preset("deit_tiny_patch16_224").replace(num_classes=7)
    assert bundle.manifest.labels[6] == "name 6"


def _names(folder, count):
    (folder / "names.txt").write_text("".join(f"name {n}\n" for n in range(count)))
    return folder / "names.txt"


def test_several_presets_that_fit_are_named(tmp_path):
    state = random_model(preset("sac_demo_patch8_64"), 0).state_dict()
    with pytest.raises(ConfigError, match=r"shapes are those of sac_demo_patch8_64, cf_demo"):
        sacvit_deploy.export(state, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ({"a": torch.zeros(2)}, ConfigError, "The state dict does not say which network"),
        (SimpleNamespace(), ConfigError, "A network was asked for and SimpleNamespace found"),
        ("none.pth", CheckpointError, r"no file none\.pth"),
        ({"dist_token": torch.zeros(1, 1, 8)}, CheckpointError, "weights of a distilled DeiT"),
        ({"a": 3}, CheckpointError, "holds int for 'a'"),
    ],
)
def test_what_cannot_be_exported(tmp_path, source, error, says):
    with pytest.raises(error, match=says):
        sacvit_deploy.export(source, tmp_path / "b")


def test_a_preprocessing_that_is_not_offered(tmp_path):
    model = OfTimm(dense(), mean=HALF, std=HALF, crop_mode="border")
    with pytest.raises(ConfigError, match="crop_mode 'border' is not offered"):
        sacvit_deploy.export(model, tmp_path / "b", preset="deit_small_patch16_224", **SMALL)


def test_without_torch_it_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import sacvit_deploy\n"
        "try: sacvit_deploy.export\n"
        "except sacvit_deploy.SacvitDeployError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Exporting a model needs torch" in ran.stdout
    assert "sacvit-deploy[export]" in ran.stdout
