from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import sacvit_deploy
from sacvit_deploy.errors import ConfigError, EngineError
from sacvit_deploy.families.config import graph_specs
from sacvit_deploy.model.build import random_model
from sacvit_deploy.runtime.features import FeaturePipeline
from sacvit_deploy.runtime.load import load_classifier
from sacvit_deploy.samples import sample_pictures


@pytest.fixture(scope="module")
def pipeline(backbone_bundle):
    with sacvit_deploy.load(backbone_bundle.path, threads=1) as opened:
        yield opened


def test_load_gives_features_of_a_backbone(pipeline, backbone_bundle):
    assert isinstance(pipeline, FeaturePipeline)
    assert (pipeline.backend, pipeline.precision) == ("onnxruntime", "fp32")
    found = pipeline(sample_pictures()[0])
    (spec,) = graph_specs(backbone_bundle.manifest.config)
    shapes = {name: array.shape for name, array in found.features.items()}
    assert shapes == {tensor.name: tensor.shape[1:] for tensor in spec.outputs}


@torch.no_grad()
def test_features_are_those_of_the_torch_network(pipeline, backbone_bundle):
    picture = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    found = pipeline(picture)
    model = random_model(backbone_bundle.manifest.config, 0)
    wanted = model(torch.from_numpy(pipeline.preprocess(picture))[None])
    for array, tensor in zip(found.features.values(), wanted, strict=True):
        assert np.abs(array - tensor[0].numpy()).max() < 1e-4 * np.abs(array).max()


def test_several_pictures_are_those_one_by_one(pipeline):
    pictures = sample_pictures()[:3]
    together = pipeline(list(pictures), batch_size=2)
    for picture, found in zip(pictures, together, strict=True):
        alone = pipeline(picture)
        assert found.image == alone.image == str(picture)
        np.testing.assert_allclose(found.features["c5"], alone.features["c5"], atol=1e-4)
    assert pipeline([]) == []


def test_a_place_in_the_picture_is_found_again(pipeline):
    found = pipeline(np.zeros((40, 100, 3), np.uint8))
    assert found.picture_size == (40, 100)
    assert found.filled == (38, 96)
    assert found.scale == pytest.approx((0.95, 0.96))


def test_what_is_out_of_range_is_refused(pipeline):
    with pytest.raises(ConfigError, match="batch_size"):
        pipeline([], batch_size=0)
    with pytest.raises(TypeError, match="cannot be pickled"):
        copy.copy(pipeline)


def test_a_closed_pipeline_says_so(backbone_bundle):
    with sacvit_deploy.load(backbone_bundle.path, threads=1) as opened:
        pass
    with pytest.raises(EngineError):
        opened(np.zeros((40, 100, 3), np.uint8))


def test_a_classifier_is_asked_for(backbone_bundle, dense_bundle):
    with pytest.raises(ConfigError, match=r"is a backbone.*no classes"):
        load_classifier(backbone_bundle.path)
    load_classifier(dense_bundle.path, threads=1).close()
