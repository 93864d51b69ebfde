from __future__ import annotations

import pytest

from sacvit_deploy.families.config import graph_macs, graph_specs, mean_macs_g, preset
from sacvit_deploy.families.vit import dense_macs
from tests.exporters.graphs import read_graph
from tests.families.mac_counter import counted_macs
from tests.tiny_models import OTHER_CHOICES, SAC

SMALL_224 = preset("sac_deit_small_patch16_224")
SMALL_288 = preset("sac_deit_small_patch16_288")


@pytest.mark.parametrize(
    ("config", "role", "paper_g"),
    [
        (SMALL_224, "early_exit", 1.10),
        (SMALL_224, "refine", 2.77),  # 2.74 and .03 of fusion
        (SMALL_288, "early_exit", 1.83),
        (SMALL_288, "refine", 4.69),
        (preset("deit_small_patch16_224"), "single", 4.60),
    ],
)
def test_the_figures_of_the_papers(config, role, paper_g):
    assert graph_macs(config)[role] / 1e9 == pytest.approx(paper_g, abs=0.005)


def test_the_mean_of_the_paper():
    """SAC-ViT, table 3: 1.75 G are 23.5 % of pictures in the second stage, 3.87 G all of them."""
    assert mean_macs_g(SMALL_224, 0.235) == pytest.approx(1.75, abs=0.005)
    assert mean_macs_g(SMALL_224, 1) == pytest.approx(3.87, abs=0.005)
    assert mean_macs_g(SMALL_224, 0) == graph_macs(SMALL_224)["early_exit"] / 1e9


def test_the_dense_network_of_the_same_body():
    dense = preset("deit_small_patch16_224")
    assert dense_macs(SMALL_224) == dense_macs(dense) == graph_macs(dense)["single"]
    assert mean_macs_g(dense, 0.7) == mean_macs_g(dense, 0) == dense_macs(dense) / 1e9


def test_what_the_mask_hides_is_not_needed():
    needed, masked = (graph_macs(SMALL_224, kind) for kind in ("needed", "masked"))
    assert needed["early_exit"] == masked["early_exit"]
    assert masked["refine"] / needed["refine"] == pytest.approx(1.016, abs=0.0005)
    joint = preset("cf_deit_small_patch16_224")
    assert graph_macs(joint, "needed") == graph_macs(joint, "masked")


@pytest.mark.parametrize(
    "name", ["sac_host", "sac_graph", "other_graph", "golden_bundle", "dense_bundle"]
)
def test_exported_graphs_cost_what_the_model_says(name, request):
    bundle = request.getfixturevalue(name)
    for role, macs in graph_macs(bundle.manifest.config, "masked").items():
        assert counted_macs(read_graph(bundle, role)) == macs, role


@pytest.mark.parametrize("config", [SAC, OTHER_CHOICES], ids=["joint", "mean"])
def test_split_attention_costs_what_is_needed(config):
    refine = _exported(config, "split")
    assert counted_macs(refine) == graph_macs(config)["refine"]
    # Small enough that the difference would show.
    assert graph_macs(config)["refine"] < 0.99 * graph_macs(config, "masked")["refine"]


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL_224, SMALL_288], ids=["224", "288"])
def test_graphs_of_the_papers_sizes(config):
    assert counted_macs(_exported(config, "split")) == pytest.approx(
        graph_macs(config)["refine"], rel=0.01
    )
    early = counted_macs(_exported(config, "split", "early_exit"))
    assert early == pytest.approx(graph_macs(config)["early_exit"], rel=0.01)


@pytest.mark.slow
def test_the_graph_of_the_dense_network():
    config = preset("deit_small_patch16_224")
    counted = counted_macs(_exported(config, "masked", "single"))
    assert counted == pytest.approx(dense_macs(config), rel=0.01)


def _exported(config, kernel, role="refine"):
    """One graph as it leaves the exporter."""
    from sacvit_deploy.exporters.onnx_from_torch import onnx_from_torch
    from sacvit_deploy.model.two_stage import TwoStageViT

    (spec,) = (spec for spec in graph_specs(config) if spec.role == role)
    return onnx_from_torch(TwoStageViT(config, cluster_kernel=kernel), spec)
