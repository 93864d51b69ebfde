from __future__ import annotations

import pytest

from sacvit_deploy.families.config import ModelConfig, graph_macs, graph_specs, preset
from sacvit_deploy.families.two_stage import TwoStageConfig
from sacvit_deploy.families.vit import dense_macs
from tests.exporters.graphs import read_graph
from tests.families.mac_counter import counted_macs, exported
from tests.tiny_models import OTHER_CHOICES, SAC

SMALL_224 = preset("sac_deit_small_patch16_224")
SMALL_288 = preset("sac_deit_small_patch16_288")


@pytest.mark.parametrize(
    ("alpha", "rounding", "side", "targets"),
    [
        (0.5, "floor", 7, 24),
        (0.5, "floor", 9, 40),
        (0.5, "ceil", 7, 25),
        (0.5, "ceil", 9, 41),
        (0.88, "floor", 5, 22),
        (0.88, "ceil", 5, 22),
        (0.28, "ceil", 5, 7),
        (0.07, "ceil", 10, 7),
        (0.29, "floor", 10, 29),
        (0.57, "floor", 10, 57),
    ],
)
def test_targets_are_counted_in_the_reals(alpha, rounding, side, targets):
    stages = TwoStageConfig(alpha=alpha, target_rounding=rounding)
    config = ModelConfig("sac_vit", (2 * side, 2 * side), 1, 24, 4, 3, two_stage=stages)
    assert config.num_targets == targets


@pytest.mark.parametrize("source", ["embedding", "final"])
@pytest.mark.parametrize("selection", ["host", "graph"])
def test_graphs_hand_over_what_the_second_asks_for(selection, source):
    config = SAC.replace(non_target_source=source)
    first, second = graph_specs(config, selection=selection)
    produced = {t.name: t for t in first.outputs}
    assert ("coarse_embeddings" in produced) == (source == "embedding")
    for tensor in second.inputs:
        if tensor.name in produced:
            assert tensor == produced[tensor.name]
    shapes = {t.name: t.shape for t in (*second.inputs, *second.outputs)}
    targets = config.num_targets
    if selection == "host":
        assert shapes["fine_index"] == ("batch", 4 * targets)
    assert shapes["target_index"] == ("batch", targets)
    assert shapes["logits"] == ("batch", 7)
    assert {side for shape in shapes.values() for side in shape if isinstance(side, str)} == {
        "batch"
    }


def test_only_the_image_differs_where_pixels_are_taken():
    floats, pixels = (graph_specs(SAC, input_kind=kind) for kind in ("float", "uint8"))
    for one, other in zip(floats, pixels, strict=True):
        assert (one.inputs[0].dtype, other.inputs[0].dtype) == ("float32", "uint8")
        assert (one.inputs[1:], one.outputs) == (other.inputs[1:], other.outputs)


def test_the_dense_network_of_the_same_body():
    dense = preset("deit_small_patch16_224")
    assert dense_macs(SMALL_224) == dense_macs(dense) == graph_macs(dense)["single"]


_BUNDLES = ["sac_host", "sac_graph", "other_graph", "golden_bundle", "windowed_graph", "lv_pixels"]


@pytest.mark.parametrize("name", _BUNDLES)
def test_exported_graphs_cost_what_the_model_says(name, request):
    bundle = request.getfixturevalue(name)
    for role, macs in graph_macs(bundle.manifest.config, "graph").items():
        assert counted_macs(read_graph(bundle, role)) == macs, role


@pytest.mark.parametrize("config", [SAC, OTHER_CHOICES], ids=["joint", "mean"])
def test_split_attention_costs_what_is_needed(config):
    refine = exported(config, "refine", cluster_kernel="split")
    needed = graph_macs(config, "needed")["refine"]
    assert counted_macs(refine) == needed
    # Small enough that the difference would show.
    assert needed < 0.99 * graph_macs(config, "graph")["refine"]


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL_224, SMALL_288], ids=["224", "288"])
def test_graphs_of_the_papers_sizes(config):
    for role, macs in graph_macs(config, "needed").items():
        counted = counted_macs(exported(config, role, cluster_kernel="split"))
        assert counted == pytest.approx(macs, rel=0.01)
