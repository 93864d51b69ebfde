from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.exporters.gate_capacity import CapacityRequest, kept_counts, with_capacity
from sacvit_deploy.families.config import preset_preprocessing
from sacvit_deploy.model.build import random_model
from sacvit_deploy.runtime.preprocess import Preprocessor
from tests.fakes import random_pictures
from tests.tiny_models import DENSE, GATED, strong_gated


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    for number, pixels in enumerate(random_pictures(20)):
        Image.fromarray(pixels).save(path / f"{number:02}.png")
    return path


@pytest.fixture(scope="module")
def model():
    return strong_gated(GATED)


def test_counts_are_those_of_single_pictures(model, folder):
    found = kept_counts(model, preset_preprocessing(GATED), CapacityRequest(folder))
    preprocess = Preprocessor(preset_preprocessing(GATED))
    images = [preprocess(path) for path in sorted(folder.iterdir())]
    with torch.no_grad():
        wanted = [model(torch.from_numpy(image[None])).keep.sum(2)[0].tolist() for image in images]
    assert sorted(found.tolist()) == sorted(wanted)


def test_a_capacity_is_enough_for_its_share_of_the_pictures(model, folder):
    counts = kept_counts(model, preset_preprocessing(GATED), CapacityRequest(folder))
    assert len(np.unique(counts)) > 3
    for quantile in (0.5, 1.0):
        config = with_capacity(
            model,
            preset_preprocessing(model.config),
            CapacityRequest(folder, quantile, strict=True),
        )
        capacity = np.array(config.gating.capacity)
        assert (config.gating.mode, config.gating.strict) == ("capacity", True)
        assert ((capacity % 8 == 0) | (capacity == 97)).all()
        assert ((counts <= capacity).mean(axis=0) >= quantile).all()
        assert ((counts <= capacity - 8).mean(axis=0) < quantile).all()


def test_a_network_without_gates_is_refused(folder):
    with pytest.raises(ConfigError, match="has no gates"):
        with_capacity(random_model(DENSE, 0), preset_preprocessing(DENSE), CapacityRequest(folder))


@pytest.mark.parametrize("fields", [{"quantile": 0.0}, {"quantile": 1.5}, {"samples": 0}])
def test_what_is_out_of_range_is_refused(folder, fields):
    with pytest.raises(ConfigError):
        CapacityRequest(folder, **fields)
