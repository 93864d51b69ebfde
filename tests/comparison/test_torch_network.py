from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sacvit_deploy.comparison.layers import Probe, Spot
from sacvit_deploy.comparison.torch_network import bundle_model, torch_network
from sacvit_deploy.families.config import preset_preprocessing
from tests.fakes import random_images, random_pictures
from tests.tiny_models import SAC


@pytest.fixture
def network(sac_model):
    return torch_network(sac_model, preset_preprocessing(SAC), "mine")


def test_a_session_computes_what_the_model_does(network, sac_model):
    assert (network.name, network.backend, network.bundle) == ("mine", "torch", None)
    image = random_images(2, SAC)
    found = network.sessions["early_exit"].run({"image": image})
    with torch.no_grad():
        wanted = sac_model.early_exit(torch.from_numpy(image))
    np.testing.assert_array_equal(found["logits"], wanted.logits.numpy())
    np.testing.assert_array_equal(found["score"], wanted.score.numpy())


def test_it_normalises_and_decides_on_pictures(network):
    decisions = network.decisions(random_pictures(3))
    assert decisions.early_logits.shape == (3, SAC.num_classes)
    assert decisions.target_index.shape == (3, SAC.num_targets)
    assert not np.array_equal(decisions.early_logits, decisions.refined_logits)


def test_a_session_records_what_enters_and_leaves_a_layer(network, sac_model):
    spots = [
        Spot("blocks.0.norm1", enters=True),
        Spot("blocks.0.mlp.fc1", enters=False),
        Spot("patch_embed.proj", enters=False),
        Spot("nowhere", enters=False),
    ]
    probes = [Probe("tensor", "node", spot.place, spot) for spot in spots]
    feeds = {"image": random_images(2, SAC)}
    found = network.sessions["early_exit"].values(probes, feeds)
    tokens = SAC.num_coarse_tokens + 1
    assert set(found) == set(spots[:3])
    assert found[spots[0]].shape == (2, tokens, SAC.embed_dim)
    assert found[spots[1]].shape == (2, tokens, int(SAC.embed_dim * SAC.mlp_ratio))
    assert not any(module._forward_hooks for module in sac_model.modules())


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
def test_weights_are_rounded_as_the_bundle_stores_them(sac_host, sac_checkpoint, storage):
    weights = dataclasses.replace(sac_host.manifest.weights, storage=storage)
    manifest = dataclasses.replace(sac_host.manifest, weights=weights)
    model = bundle_model(dataclasses.replace(sac_host, manifest=manifest), sac_checkpoint)
    weight = model.get_parameter("blocks.0.mlp.fc1.weight")
    assert torch.equal(weight, weight.half().float()) == (storage == "fp16")
