from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from sacvit_deploy.comparison.graphs import (
    fp32_graphs,
    linear_nodes,
    redirect,
    resolve_keep,
    tensor_values,
    to_model,
    with_outputs,
)
from sacvit_deploy.errors import ConfigError, EngineError
from sacvit_deploy.model.build import build_model
from tests.engines.typed_onnx import write_typed_bundle
from tests.exporters.graphs import normalised, placed, read_graph, run_model

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
    graph = placed(bundle, role)
    found, model = graph.places, graph.model
    fusion = ["fusion.mlp.fc1", "fusion.mlp.fc2"] if role == "refine" else []
    depth = bundle.manifest.config.depth
    blocks = [f"blocks.{i}.{part}" for i in range(depth) for part in BLOCK]
    linear = [found[node.name] for node in linear_nodes(model)]
    assert linear == ["input", *fusion, *blocks, "head"]
    modules = dict(build_model(bundle.manifest.config).named_modules())
    assert set(found.values()) - {"input"} <= modules.keys()
    assert list(found) == [node.name for node in model.graph.node]
    assert list(graph.linear_layers) == [*fusion, *blocks]


def test_weights_confirm_the_names(sac_host):
    """The bias behind a product still has the parameter's name."""
    graph = placed(sac_host, "refine")
    found, model = graph.places, graph.model
    products = {node.output[0]: node for node in linear_nodes(model)}
    named = 0
    for node in model.graph.node:
        if node.op_type == "Add" and node.input[0] in products and "bias" in node.input[1]:
            assert node.input[1] == f"model.{found[node.name]}.bias"
            named += 1
    assert named >= 4 * sac_host.manifest.config.depth


def test_names_of_places_and_nodes_are_resolved(sac_host):
    graphs = fp32_graphs(sac_host)
    where = graphs["refine"].places
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
    with pytest.raises(ConfigError, match=r"blocks\.1\.attn\.proj"):
        resolve_keep([name], {"refine": placed(sac_host, "refine")})


def test_tensors_inside_a_graph_can_be_looked_at(sac_host, tmp_path):
    model = read_graph(sac_host, "early_exit")
    image = normalised(sac_host, 2)[1]
    first = linear_nodes(model)[1].input[0]
    outputs = [output.name for output in model.graph.output]
    opened = with_outputs(model, [first, "logits"])
    assert [output.name for output in opened.graph.output] == [*outputs, first]
    found = tensor_values(model, [first], {"image": image}, tmp_path / "opened.onnx")
    assert found.keys() == {*outputs, first}
    wanted = dict(zip(outputs, run_model(model, image=image), strict=True))
    np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=0, atol=1e-4)


def test_every_reader_of_a_tensor_is_redirected():
    tensors = [gs.Variable(name, np.float32, (2,)) for name in "abcd"]
    x, _, twice, thrice = tensors
    nodes = [gs.Node("Add", "twice", {}, [x, x], [twice]), gs.Node("Add", "b", {}, [twice, x])]
    nodes[1].outputs = [thrice]
    other = gs.Constant("other", np.ones(2, np.float32))
    redirect(x, other)
    assert [[tensor.name for tensor in node.inputs] for node in nodes] == [
        ["other", "other"],
        ["c", "other"],
    ]
    model = to_model(gs.Graph(nodes, [], [thrice], opset=18, ir_version=9))
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(run_model(model)[0], [3, 3])


def test_a_graph_that_does_not_name_its_layers_is_one_error(tmp_path):
    bundle = write_typed_bundle(tmp_path / "bundle")
    with pytest.raises(EngineError, match="does not say which layer its weight first_weight"):
        fp32_graphs(bundle)
