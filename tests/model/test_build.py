from __future__ import annotations

import pytest
import torch

from sacvit_deploy.families.config import preset
from sacvit_deploy.model.build import (
    as_stored,
    build_model,
    model_of_origin,
    random_model,
)
from sacvit_deploy.model.two_stage import TwoStageViT
from sacvit_deploy.model.vit import VisionTransformer
from sacvit_deploy.records import WeightsOrigin
from tests.tiny_models import DENSE, SAC


def test_a_configuration_names_its_network():
    assert isinstance(build_model(SAC), TwoStageViT)
    assert isinstance(build_model(DENSE), VisionTransformer)


def test_a_seed_gives_one_set_of_weights_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (random_model(SAC, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_biases_and_norms_are_random_too():
    weights = random_model(SAC, 0).state_dict()
    assert weights["norm.weight"].std() > 0
    assert weights["head.bias"].std() > 0


def test_weights_stored_in_half_are_rounded_in_a_copy():
    model = random_model(DENSE, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = as_stored(model, WeightsOrigin("model", storage="fp32")).state_dict()
    rounded = as_stored(model, WeightsOrigin("model", storage="fp16")).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(rounded[name], whole[name].half().float())
    assert torch.equal(whole["head.weight"], before["head.weight"])
    assert not torch.equal(rounded["head.weight"], before["head.weight"])


def test_random_weights_are_made_again_from_their_record():
    record = WeightsOrigin("random", seed=3, storage="fp16")
    model = model_of_origin(SAC, record)
    assert model is not None
    wanted = as_stored(random_model(SAC, 3), record).state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in model.state_dict().items())
    assert model_of_origin(SAC, WeightsOrigin("checkpoint", file="sac.safetensors")) is None


@pytest.mark.parametrize("name", ["sac_demo_patch8_64", "demo_patch8_64", "lv_demo_patch8_64"])
def test_random_weights_are_drawn_in_the_same_order_forever(name):
    """Or a bundle of random weights could not be compared with them any more."""
    names = list(random_model(preset(name), 0).state_dict())
    first = [each.removeprefix("blocks.0.") for each in names if each.startswith("blocks.0.")]
    modules = list(dict.fromkeys(each.rpartition(".")[0] for each in first))
    assert modules == ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    assert names[0] == "cls_token"
