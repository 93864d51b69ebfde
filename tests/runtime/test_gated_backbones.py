"""Bundles of backbones with gates in the pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.exporters.gate_capacity import CapacityRequest
from sacvit_deploy.exporters.precision import PrecisionRequest, add_precision
from sacvit_deploy.model.gating import Gate
from sacvit_deploy.runtime.features import FeaturePipeline
from sacvit_deploy.runtime.load import load
from sacvit_deploy.samples import sample_pictures
from tests.exporters.precision.conftest import copy_of
from tests.fakes import random_pictures
from tests.tiny_models import ADAPTED, strong_adapted

PICTURES = random_pictures(3)


def opened(bundle) -> FeaturePipeline:
    pipeline = load(bundle.path, threads=1)
    assert isinstance(pipeline, FeaturePipeline)
    return pipeline


@pytest.fixture(scope="module")
def masked(made_once):
    return made_once("adapted_masked", lambda path: export_bundle(strong_adapted(ADAPTED), path))


@pytest.fixture(scope="module")
def exact(made_once):
    model = strong_adapted(ADAPTED.replace(mode="exact"))
    return made_once("adapted_exact", lambda path: export_bundle(model, path))


@torch.no_grad()
def test_features_and_kept_tokens_are_those_of_the_torch_network(masked, exact):
    model = strong_adapted(ADAPTED)
    for bundle in (masked, exact):
        pipeline = opened(bundle)
        for picture, found in zip(PICTURES, pipeline(list(PICTURES), batch_size=2), strict=True):
            wanted = model(torch.from_numpy(pipeline.preprocess(picture))[None])
            assert found.kept_tokens == tuple(wanted.keep[0].sum(1).tolist())
            for array, tensor in zip(found.features.values(), wanted.features, strict=True):
                assert np.abs(array - tensor[0].numpy()).max() < 1e-4 * np.abs(array).max()


@torch.no_grad()
def test_a_graph_that_computes_what_is_kept_takes_a_picture_of_which_nothing_is(made_once):
    model = strong_adapted(ADAPTED.replace(mode="exact"))
    for module in model.modules():
        if isinstance(module, Gate):
            module.mlp.fc2.bias.copy_(torch.tensor([-1e3, 1e3]))
    bundle = made_once("adapted_nothing", lambda path: export_bundle(model, path))
    pipeline = opened(bundle)
    found = pipeline(PICTURES[0])
    assert found.kept_tokens == (0, 0, 0)
    wanted = model(torch.from_numpy(pipeline.preprocess(PICTURES[0]))[None], "masked").features
    for array, tensor in zip(found.features.values(), wanted, strict=True):
        assert np.abs(array - tensor[0].numpy()).max() < 1e-4 * np.abs(array).max()


def test_capacities_are_found_on_pictures(made_once):
    pictures = sample_pictures()[0].parent
    options = ExportOptions(capacity=CapacityRequest(pictures, quantile=1.0))
    model = strong_adapted(ADAPTED)
    bundle = made_once("adapted_capacity", lambda path: export_bundle(model, path, options))
    gating = bundle.manifest.config.gating
    assert gating.mode == "capacity"
    pipeline = opened(bundle)
    kept = np.array([found.kept_tokens for found in pipeline(sorted(pictures.glob("*.jpg")))])
    assert (kept <= gating.capacity).all()
    assert (kept.max(axis=0) > np.array(gating.capacity) - 8).all()


def test_half_precision_keeps_places_and_decisions_in_floats(masked, tmp_path):
    bundle = add_precision(copy_of(masked, tmp_path / "half"), PrecisionRequest("fp16"))
    agreement = bundle.manifest.precisions["fp16"].agreement
    assert agreement.max_tensor_error is not None
    assert agreement.max_tensor_error < 0.02
    assert agreement.target_overlap > 0.98
