from __future__ import annotations

import pytest
import torch

from sacvit_deploy.families.config import graph_specs
from sacvit_deploy.model.views import (
    EarlyExitView,
    RefineFromScoreView,
    RefineView,
    SingleView,
    example_inputs,
    view_for,
)
from tests.tiny_models import DENSE, OTHER_CHOICES, SAC, strong_model, strong_two_stage

CONFIGS = [SAC, OTHER_CHOICES]


def specs(config, **kinds):
    return {spec.role: spec for spec in graph_specs(config, **kinds)}


def images(config, count=3):
    return torch.randn(count, 3, *config.image_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("selection", ["host", "graph"])
@pytest.mark.parametrize("config", [SAC, OTHER_CHOICES, DENSE], ids=["sac", "other", "dense"])
def test_example_inputs_are_what_the_contract_says(config, selection):
    for spec in graph_specs(config, selection=selection):
        examples = example_inputs(spec, config)
        assert len(examples) == len(spec.inputs)
        sizes: dict[str, set[int]] = {}
        for tensor, example in zip(spec.inputs, examples, strict=True):
            assert str(example.dtype) == f"torch.{tensor.dtype}"
            for axis, side in zip(tensor.shape, example.shape, strict=True):
                if isinstance(axis, str):
                    sizes.setdefault(axis, set()).add(side)
                else:
                    assert side == axis
        assert all(len(found) == 1 for found in sizes.values())
        assert {1} not in sizes.values()


@pytest.mark.parametrize("config", CONFIGS, ids=["sac", "other"])
@pytest.mark.parametrize("selection", ["host", "graph"])
def test_example_indices_point_at_something(config, selection):
    spec = specs(config, selection=selection)["refine"]
    limits = {
        "target_index": config.num_coarse_tokens,
        "non_target_index": config.num_coarse_tokens,
        "fine_index": config.num_fine_tokens,
    }
    for tensor, example in zip(spec.inputs, example_inputs(spec, config), strict=True):
        if tensor.dtype == "int64":
            assert 0 <= int(example.min()) <= int(example.max()) < limits[tensor.name]


def test_each_graph_has_its_view():
    model, dense = strong_model(SAC), strong_model(DENSE)
    host, graph = specs(SAC, selection="host"), specs(SAC, selection="graph")
    assert isinstance(view_for(model, host["early_exit"]), EarlyExitView)
    assert isinstance(view_for(model, host["refine"]), RefineView)
    assert isinstance(view_for(model, graph["refine"]), RefineFromScoreView)
    assert isinstance(view_for(dense, specs(DENSE)["single"]), SingleView)


def test_a_view_is_in_evaluation_mode():
    model = strong_model(SAC).train()
    assert not view_for(model, specs(SAC)["early_exit"]).training
    assert not model.training


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS, ids=["sac", "other"])
def test_the_views_compute_what_the_model_computes(config):
    model = strong_two_stage(config)
    image = images(config)
    wanted = model(image)
    host, graph = specs(config, selection="host"), specs(config, selection="graph")
    logits, score, *handed = view_for(model, host["early_exit"])(image)
    assert torch.equal(logits, wanted.early_exit.logits)
    names = [tensor.name for tensor in host["early_exit"].outputs]
    assert len(names) == 2 + len(handed)
    assert torch.equal(score, wanted.early_exit.score)
    selection = wanted.selection
    (by_host,) = view_for(model, host["refine"])(
        image, *handed, selection.target, selection.non_target, selection.fine
    )
    assert torch.equal(by_host, wanted.refined_logits)
    by_graph, target = view_for(model, graph["refine"])(image, score, *handed)
    assert torch.equal(by_graph, wanted.refined_logits)
    assert torch.equal(target, selection.target)
