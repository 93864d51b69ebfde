"""Preprocessing as timm and Hugging Face describe it, against Pillow and numpy."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.exporters.preprocessing import (
    PreprocessingRequest,
    preprocessing_for,
    read_preprocessing,
)
from sacvit_deploy.families.config import ModelConfig, preset
from sacvit_deploy.model.build import random_model
from sacvit_deploy.model.checkpoints import Checkpoint, save_checkpoint
from sacvit_deploy.runtime.load import load
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.samples import sample_pictures
from sacvit_deploy.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

HALF = (0.5, 0.5, 0.5)
# What timm's hub files say of these networks.
TIMM: dict[str, dict[str, Any]] = {
    "deit": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop_pct": 0.9},
    "vit": {"mean": HALF, "std": HALF, "crop_pct": 0.9, "interpolation": "bicubic"},
    "vit-384": {"mean": HALF, "std": HALF, "crop_pct": 1.0, "input_size": [3, 384, 384]},
    "bilinear": {"mean": HALF, "std": HALF, "crop_pct": 0.875, "interpolation": "bilinear"},
    "squash": {"mean": HALF, "std": HALF, "crop_pct": 0.95, "crop_mode": "squash"},
}
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def small(side: int) -> ModelConfig:
    """A dense ViT for pictures of that size, of little work."""
    return preset("deit_small_patch16_224").replace(
        image_size=(side, side), patch_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=4
    )


def as_timm_does(path, cfg, side):
    """Resize, centre crop and normalise, step by step: (3, side, side) in float64."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    scale = math.floor(side / cfg["crop_pct"])
    width, height = picture.size
    if cfg.get("crop_mode") == "squash":
        size = scale, scale
    elif width <= height:
        size = scale, int(scale * height / width)
    else:
        size = int(scale * width / height), scale
    resized = picture.resize(size, FILTERS[cfg.get("interpolation", "bicubic")])
    left, top = (round((length - side) / 2) for length in size)
    pixels = np.asarray(resized.crop((left, top, left + side, top + side))) / 255
    return ((pixels - cfg["mean"]) / cfg["std"]).transpose(2, 0, 1)


@pytest.fixture(params=TIMM)
def timm(request, tmp_path):
    """A checkpoint of timm, with its `config.json`: (path, network, configuration)."""
    cfg = TIMM[request.param]
    side = cfg.get("input_size", (3, 224, 224))[1]
    config = small(side)
    path = tmp_path / "model.safetensors"
    write_as_timm(path, config)
    content = {"architecture": request.param, "num_classes": 4, "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return path, config, cfg


def write_as_timm(path, config) -> None:
    from safetensors.torch import save_file

    save_file(random_model(config, 0).state_dict(), path)


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_pictures_are_prepared_as_timm_prepares_them(timm, tmp_path, kind):
    path, config, cfg = timm
    bundle = export_bundle(path, tmp_path / "bundle", ExportOptions(config, input_kind=kind))
    spec = bundle.manifest.preprocessing
    with load(bundle.path) as pipeline:
        for picture in sample_pictures():
            wanted = as_timm_does(picture, cfg, config.image_size[0])
            found = Preprocessor(spec)(picture)
            # Only the crop is resampled: few values differ, by at most 2 of 255.
            steps = np.abs(found - wanted) * np.reshape(cfg["std"], (3, 1, 1)) * 255
            assert steps.max() <= 2.01
            assert steps.mean() < 0.1
            values = pipeline.preprocess(picture)
            if kind == "uint8":
                pixels = np.asarray(values, np.uint8)
                np.testing.assert_array_equal(pipeline.preprocess.normalize(pixels), found)
            else:
                np.testing.assert_array_equal(values, found)


def test_the_graph_of_pixels_normalises_like_the_host(timm, tmp_path):
    path, config, _ = timm
    logits = []
    for kind in ("float", "uint8"):
        bundle = export_bundle(path, tmp_path / kind, ExportOptions(config, input_kind=kind))
        with load(bundle.path) as pipeline:
            (outcome,) = pipeline.outcomes(pipeline.preprocess(sample_pictures()[0])[None])
        logits.append(outcome.logits)
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-5)


HUGGING_FACE: dict[str, Any] = {
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.25, 0.25, 0.25],
    "resample": 2,
    "size": {"height": 224, "width": 224},
}


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, {"interpolation": "bilinear", "crop_ratio": 1.0, "fit": "squash"}),
        ({"resample": 3}, {"interpolation": "bicubic"}),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224},
            {"crop_ratio": 0.875, "fit": "crop"},
        ),
        (
            {
                "size": {"height": 256, "width": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
            },
            {"crop_ratio": 0.875, "fit": "squash"},
        ),
        ({"do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
    ],
)
def test_files_of_hugging_face(tmp_path, changes, fields):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**HUGGING_FACE, **changes}))
    found = read_preprocessing(file)
    usual = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.25, 0.25)}
    assert {name: found[name] for name in {**usual, **fields}} == {**usual, **fields}
    Preprocessing((224, 224), **found)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({**HUGGING_FACE, "resample": 1}, "resample 1 is not offered"),
        ({**TIMM["vit"], "crop_mode": "border"}, "crop_mode 'border' is not offered"),
        ({"mean": [0.5]}, "'std'"),
        ({"mean": 0.5, "std": 0.5}, "cannot be used"),
        ({"architectures": ["ViTModel"]}, "does not say how pictures are prepared"),
        ([], "does not say"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, says):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=says) as refused:
        read_preprocessing(file)
    assert "--mean" in refused.value.fix


def checkpoint(tmp_path, name="model.safetensors") -> Checkpoint:
    path = tmp_path / name
    write_as_timm(path, small(64))
    return Checkpoint.read(path)


def found_for(request, source) -> Preprocessing:
    return preprocessing_for(small(64), request, source)


def test_what_is_asked_for_counts_more_than_a_file(tmp_path, caplog):
    source = checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TIMM["vit"]))
    caplog.set_level("INFO", "sacvit_deploy")
    found = found_for(PreprocessingRequest(crop_ratio=0.8, std=(0.3,)), source)
    assert (found.mean, found.std, found.crop_ratio) == (HALF, (0.3,) * 3, 0.8)
    assert caplog.messages == [f"Preprocessing from {tmp_path / 'config.json'}"]


def test_a_file_that_says_nothing_of_pictures_is_passed_over(tmp_path):
    source = checkpoint(tmp_path, "deit.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["ViTModel"]}')
    assert found_for(PreprocessingRequest(), source).mean == IMAGENET_MEAN


@pytest.mark.parametrize(
    ("name", "request_", "warns"),
    [
        ("model.safetensors", PreprocessingRequest(), True),
        ("DeiT_small.safetensors", PreprocessingRequest(), False),
        ("model.safetensors", PreprocessingRequest(mean=(0.5,)), False),
    ],
)
def test_weights_that_may_be_of_timms_vit_are_told(tmp_path, caplog, name, request_, warns):
    with caplog.at_level(logging.WARNING):
        found_for(request_, checkpoint(tmp_path, name))
    assert ("--mean, --std, --crop-ratio, --interpolation" in caplog.text) is warns


def test_our_own_checkpoints_and_random_weights_are_of_deit(tmp_path, caplog):
    path = tmp_path / "own.safetensors"
    save_checkpoint(path, random_model(small(64), 0).state_dict(), small(64))
    (tmp_path / "config.json").write_text(json.dumps(TIMM["vit"]))
    for source in (Checkpoint.read(path), None):
        assert found_for(PreprocessingRequest(), source).mean == IMAGENET_MEAN
    assert not caplog.text


@pytest.mark.parametrize("wrong", [{"mean": (0.5, 0.5)}, {"crop_ratio": 2.0}, {"std": (0.0,)}])
def test_values_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        found_for(PreprocessingRequest(**wrong), None)


def test_an_older_bundle_keeps_its_preprocessing(sac_host):
    assert Bundle.open(sac_host.path).manifest.preprocessing.fit == "crop"
