from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sacvit_deploy.comparison.graphs import linear_nodes, places, resolve_keep
from sacvit_deploy.errors import ConfigError
from tests.exporters.graphs import read_graph

if TYPE_CHECKING:
    import onnx

    from sacvit_deploy.spec import Role

BLOCK = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("sac_host", "early_exit"),
        ("sac_host", "refine"),
        ("sac_graph", "refine"),
        ("other_graph", "refine"),
        ("dense_bundle", "single"),
    ],
)
def test_linear_layers_are_where_the_network_has_them(name, role, request):
    bundle = request.getfixturevalue(name)
    model = read_graph(bundle, role)
    found = places(model, role)
    fusion = ["fusion.mlp.fc1", "fusion.mlp.fc2"] if role == "refine" else []
    depth = bundle.manifest.config.depth
    blocks = [f"blocks.{i}.{part}" for i in range(depth) for part in BLOCK]
    linear = [found[node.name] for node in linear_nodes(model)]
    assert linear == ["input", *fusion, *blocks, "head"]
    assert set(found) == {node.name for node in model.graph.node}


def test_weights_confirm_the_names(sac_host):
    """The bias behind a product still has the parameter's name."""
    model = read_graph(sac_host, "refine")
    found = places(model, "refine")
    products = {node.output[0]: node for node in linear_nodes(model)}
    named = 0
    for node in model.graph.node:
        if node.op_type == "Add" and node.input[0] in products and "bias" in node.input[1]:
            assert node.input[1] == f"model.{found[node.name]}.bias"
            named += 1
    assert named >= 4 * sac_host.manifest.config.depth


def test_names_of_places_and_nodes_are_resolved(sac_host):
    graphs: dict[Role, onnx.ModelProto] = {
        "early_exit": read_graph(sac_host, "early_exit"),
        "refine": read_graph(sac_host, "refine"),
    }
    where = places(graphs["refine"], "refine")
    place = {name for name, found in where.items() if found == "blocks.1.mlp.fc1"}
    assert resolve_keep(["refine:blocks.1.mlp.fc1"], graphs) == {
        "early_exit": frozenset(),
        "refine": place,
    }
    both = resolve_keep(["blocks.1.mlp.fc1"], graphs)
    assert both["early_exit"]
    assert both["refine"] == place
    node = next(iter(place))
    assert resolve_keep([f"refine:{node}"], graphs)["refine"] == {node}


@pytest.mark.parametrize("name", ["blocks.9.mlp.fc1", "single:head", "refine:no such node"])
def test_an_unknown_name_is_refused(name, sac_host):
    graphs: dict[Role, onnx.ModelProto] = {"refine": read_graph(sac_host, "refine")}
    with pytest.raises(ConfigError, match=r"blocks\.1\.attn\.proj"):
        resolve_keep([name], graphs)
