from __future__ import annotations

import pytest
import torch

from sacvit_deploy.families.config import graph_macs, graph_specs, preset
from sacvit_deploy.families.vit import VIT, dense_macs
from sacvit_deploy.model.build import build_model
from tests.exporters.graphs import read_graph
from tests.families.mac_counter import counted_macs, exported


# Millions of parameters as DeiT's paper has them (table 1).
@pytest.mark.parametrize(
    ("name", "millions"),
    [("deit_tiny_patch16_224", 5.7), ("deit_small_patch16_224", 22.1)],
)
def test_size_of_the_dense_baselines(name, millions):
    with torch.device("meta"):
        model = build_model(preset(name))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_figure_of_the_paper():
    config = preset("deit_small_patch16_224")
    assert graph_macs(config)["single"] / 1e9 == pytest.approx(4.60, abs=0.005)


@pytest.mark.parametrize("name", VIT.presets)
def test_there_is_one_graph_from_a_picture_to_logits(name):
    config = preset(name)
    (graph,) = graph_specs(config)
    assert [tensor.shape for tensor in graph.inputs] == [("batch", 3, *config.image_size)]
    assert [tensor.shape for tensor in graph.outputs] == [("batch", config.num_classes)]


def test_the_exported_graph_costs_what_the_model_says(dense_bundle):
    counted = counted_macs(read_graph(dense_bundle, "single"))
    assert counted == graph_macs(dense_bundle.manifest.config, "graph")["single"]


@pytest.mark.slow
def test_the_graph_of_the_dense_network():
    config = preset("deit_small_patch16_224")
    counted = counted_macs(exported(config, "single"))
    assert counted == dense_macs(config, "graph") == pytest.approx(4.31e9, rel=0.001)
