from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from sacvit_deploy.comparison.graphs import linear_layers, linear_nodes, places, quantised_nodes
from sacvit_deploy.exporters.precision.add_precision import linear_weight_shares
from sacvit_deploy.exporters.precision.int8 import RoundedWeight, int8_model, rounded_weight
from sacvit_deploy.exporters.precision.ranges import CalibratingSession
from tests.exporters.graphs import normalised, op_counts, read_graph, run_model, session

GRAPHS = [
    ("sac_host", "early_exit"),
    ("sac_host", "refine"),
    ("sac_graph", "early_exit"),
    ("sac_graph", "refine"),
    ("dense_bundle", "single"),
]


class Quantised:
    """A graph as ONNX Runtime takes it, or as engines are built from it."""

    def __init__(self, bundle, role, *, for_engines) -> None:
        self.original = read_graph(bundle, role)
        self.config = bundle.manifest.config
        entry = bundle.graph(role, "int8")
        path = bundle.engine_graph_path if for_engines else bundle.graph_path
        self.model = onnx.load(path(entry))
        self.dtype = np.float16 if for_engines else np.float32
        self.nodes = list(self.model.graph.node)
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}

    def comes_from(self, name) -> str:
        return self.producers[name].op_type if name in self.producers else ""


@pytest.fixture(scope="module", params=GRAPHS, ids="-".join)
def chosen(request, with_precisions):
    name, role = request.param
    return with_precisions(request.getfixturevalue(name)), role


@pytest.fixture(scope="module", params=[False, True], ids=["runtime", "engines"])
def graph(request, chosen) -> Quantised:
    return Quantised(*chosen, for_engines=request.param)


def test_it_is_valid_and_node_names_stay(graph):
    onnx.checker.check_model(graph.model, full_check=True)
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    assert {node.name for node in graph.original.graph.node} <= set(names)


def test_exactly_the_linear_layers_of_the_blocks_and_the_fusion_are_quantised(graph):
    wanted = {n.name for n in linear_nodes(graph.original) if n.op_type == "MatMul"}
    assert len(wanted) >= 4 * graph.config.depth
    # The shape of a tensor does not depend on its type.
    readers = {
        node.name
        for node in graph.nodes
        if node.op_type != "Shape" and "DequantizeLinear" in map(graph.comes_from, node.input)
    }
    assert readers == wanted
    for node in graph.nodes:
        if node.name in wanted:
            assert [graph.comes_from(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2


def test_weights_are_int8_per_channel_without_a_float_copy(graph):
    for node in graph.nodes:
        if node.op_type != "MatMul":
            continue
        maker = graph.producers[node.input[1]]
        if maker.op_type != "DequantizeLinear":
            continue
        weight, scale, zero = (graph.constants[name] for name in maker.input)
        axis = next(a.i for a in maker.attribute if a.name == "axis")
        assert weight.dtype == zero.dtype == np.int8
        assert scale.dtype == graph.dtype
        assert scale.shape == (weight.shape[axis],)
        assert axis == 1
        assert not zero.any()
        assert 120 < np.abs(weight.astype(int)).max() <= 127
    floats = {v.shape for v in graph.constants.values() if v.dtype in (np.float16, np.float32)}
    quantised = {w.shape for w in graph.constants.values() if w.dtype == np.int8 and w.ndim > 1}
    assert not quantised & floats


def test_both_graphs_have_the_same_int8_weights(chosen):
    one, other = (Quantised(*chosen, for_engines=value) for value in (False, True))
    int8 = [
        {w.tobytes() for w in graph.constants.values() if w.dtype == np.int8 and w.ndim > 1}
        for graph in (one, other)
    ]
    assert int8[0] == int8[1]
    assert len(int8[0]) >= 4 * one.config.depth


def test_the_rest_of_what_engines_are_built_from_is_half(chosen):
    graph = Quantised(*chosen, for_engines=True)
    types = {v.name: v.type.tensor_type.elem_type for v in typed_values(graph.model)}
    assert {entry.version for entry in graph.model.opset_import if not entry.domain} == {19}
    computed = [n for n in graph.nodes if n.op_type in {"LayerNormalization", "Erf", "Conv"}]
    assert computed
    assert {types[node.output[0]] for node in computed} == {TensorProto.FLOAT16}
    assert types["logits"] == TensorProto.FLOAT
    shares = linear_weight_shares(graph.model)
    assert shares["int8"] >= 0.8
    assert shares["float"] == 0


def typed_values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return [*inferred.value_info, *inferred.output]


def unsmoothed(graph, name: str) -> str:
    """The tensor itself, or what a product and a sum made for smoothing take."""
    maker = graph.producers.get(name)
    if maker and "_smooth_" in maker.name:
        return unsmoothed(graph, maker.input[0])
    return name


def test_activations_are_symmetric_int8(graph):
    quantizers = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    linears = (node for node in linear_nodes(graph.original) if node.op_type == "MatMul")
    inputs = {node.input[0] for node in linears}
    assert {unsmoothed(graph, node.input[0]) for node in quantizers} == inputs
    for node in quantizers:
        scale, zero = (graph.constants[name] for name in node.input[1:])
        assert zero.dtype == np.int8
        assert zero == 0
        assert scale.dtype == graph.dtype
        assert scale.shape == ()
        assert scale > 0


def rounded_to_nearest(model) -> dict[str, RoundedWeight]:
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {node.name: stored[node.input[1]] for node in quantised_nodes(model)}
    return {name: rounded_weight(weight, np.eye(len(weight))) for name, weight in weights.items()}


def ranges_of(bundle, method, tmp_path, batches):
    model = read_graph(bundle, "early_exit")
    measuring = CalibratingSession(session(bundle, "early_exit"), model, method, tmp_path)
    for image in batches:
        measuring.run({"image": image})
    return model, measuring.ranges()


@pytest.fixture
def batches(sac_host) -> list[np.ndarray]:
    """The last one is smaller, as in real life."""
    images = normalised(sac_host, 11)[1]
    return [images[:8], images[8:]]


def with_outputs(model: onnx.ModelProto, names) -> onnx.ModelProto:
    typed = onnx.shape_inference.infer_shapes(model)
    del typed.graph.output[:]
    infos = {info.name: info for info in typed.graph.value_info}
    typed.graph.output.extend(infos[name] for name in names)
    return typed


def test_min_max_is_the_largest_value_of_all_batches(sac_host, batches, tmp_path):
    model, ranges = ranges_of(sac_host, "minmax", tmp_path, batches)
    names = [node.input[0] for node in quantised_nodes(model)]
    found = run_model(with_outputs(model, names), image=np.concatenate(batches))
    for name, values in zip(names, found, strict=True):
        low, high = (float(np.squeeze(v)) for v in ranges[name].range_value)
        assert high == -low == pytest.approx(np.abs(values).max(), rel=1e-4)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_the_other_methods_cut_off_outliers(method, sac_host, batches, tmp_path):
    model, ranges = ranges_of(sac_host, method, tmp_path, batches)
    # Behind GELU, where a few values are far larger than the others.
    name = linear_layers(model, "early_exit")["blocks.0.mlp.fc2"].input[0]
    low, high = (float(v) for v in ranges[name].range_value[:2])
    values = run_model(with_outputs(model, [name]), image=np.concatenate(batches))[0]
    assert 0 < max(-low, high) < 0.99 * np.abs(values).max()


def test_the_calibrators_keep_quiet(sac_host, batches, tmp_path, capsys):
    ranges_of(sac_host, "percentile", tmp_path, batches)
    assert capsys.readouterr().out == ""


def test_kept_nodes_stay_float(sac_host, batches, tmp_path):
    model, ranges = ranges_of(sac_host, "minmax", tmp_path, batches)
    where = places(model, "early_exit")
    keep = frozenset(node for node, place in where.items() if place.startswith("blocks.0."))
    weights = rounded_to_nearest(model)
    before, after = (op_counts(int8_model(model, ranges, weights, k)) for k in (frozenset(), keep))
    assert before["QuantizeLinear"] - after["QuantizeLinear"] == 4
    everything = frozenset(node.name for node in model.graph.node)
    assert int8_model(model, ranges, weights, everything) == model


def test_the_original_is_not_changed(sac_host, batches, tmp_path):
    model, ranges = ranges_of(sac_host, "minmax", tmp_path, batches)
    before = model.SerializeToString()
    made = int8_model(model, ranges, rounded_to_nearest(model))
    assert model.SerializeToString() == before
    assert any(t.data_type == TensorProto.INT8 for t in made.graph.initializer)
    image = batches[0]
    names = [output.name for output in model.graph.output]
    wanted, found = (run_model(graph, image=image) for graph in (model, made))
    for exact, rounded in zip(wanted, found, strict=True):
        assert np.abs(rounded - exact).max() < 0.3 * np.abs(exact).max()
    logits = names.index("logits")
    assert np.abs(found[logits] - wanted[logits]).max() > 0
