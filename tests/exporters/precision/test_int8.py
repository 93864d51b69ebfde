from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from sacvit_deploy.comparison.graphs import linear_nodes, matmuls
from sacvit_deploy.exporters.precision.add_precision import linear_weight_shares
from sacvit_deploy.exporters.precision.int8 import (
    LEVELS,
    RoundedWeight,
    int8_model,
    rounded_weight,
)
from tests.exporters.graphs import op_counts, read_graph, run_model
from tests.exporters.precision.conftest import ranges_of

INPUTS, OUTPUTS = 200, 24  # more inputs than one block of corrections
GRAPHS = [
    ("sac_host", "early_exit"),
    ("sac_host", "refine"),
    ("sac_graph", "early_exit"),
    ("sac_graph", "refine"),
    ("lv_pixels", "early_exit"),
    ("lv_pixels", "refine"),
    ("dense_bundle", "single"),
]


class Quantised:
    """The graph for ONNX Runtime, or the one for engines."""

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
    computed = [n for n in graph.nodes if n.op_type in {"Erf", "Conv"}]
    assert computed
    assert {types[node.output[0]] for node in computed} == {TensorProto.FLOAT16}
    norms = [node for node in graph.nodes if node.op_type == "LayerNormalization"]
    assert {types[node.output[0]] for node in norms} == {TensorProto.FLOAT}
    assert types["logits"] == TensorProto.FLOAT
    shares = linear_weight_shares(graph.model)
    assert shares["float"] == 0
    stored = {tensor.name: math.prod(tensor.dims) for tensor in graph.original.graph.initializer}
    sizes = dict.fromkeys(("MatMul", "Conv", "Gemm"), 0)
    for node in linear_nodes(graph.original):
        sizes[node.op_type] += stored[node.input[1]]
    halves = 2 * (sizes["Conv"] + sizes["Gemm"])
    assert shares["int8"] == pytest.approx(sizes["MatMul"] / (sizes["MatMul"] + halves))


def typed_values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return [*inferred.value_info, *inferred.output]


def unsmoothed(graph, name: str) -> str:
    """The tensor itself, before a Cast, and before a product and a sum made for smoothing."""
    maker = graph.producers.get(name)
    if maker and ("_smooth_" in maker.name or maker.op_type == "Cast"):
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


def rounded_to_nearest(model: onnx.ModelProto) -> dict[str, RoundedWeight]:
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {node.name: stored[node.input[1]] for node in matmuls(model)}
    return {name: rounded_weight(weight, np.eye(len(weight))) for name, weight in weights.items()}


def test_kept_nodes_stay_float(sac_host, batches, tmp_path):
    graph, ranges = ranges_of(sac_host, "minmax", tmp_path, batches)
    model = graph.model
    keep = frozenset(node for node, place in graph.places.items() if place.startswith("blocks.0."))
    weights = rounded_to_nearest(model)
    before, after = (op_counts(int8_model(model, ranges, weights, k)) for k in (frozenset(), keep))
    assert before["QuantizeLinear"] - after["QuantizeLinear"] == 4
    everything = frozenset(node.name for node in model.graph.node)
    assert int8_model(model, ranges, weights, everything) == model


def test_the_original_is_not_changed(sac_host, batches, tmp_path):
    graph, ranges = ranges_of(sac_host, "minmax", tmp_path, batches)
    model = graph.model
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


# Rounding


@pytest.fixture
def layer() -> tuple[np.ndarray, np.ndarray]:
    """A weight, and inputs that have much in common with each other."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
    common = rng.normal(size=(2000, 20)) @ rng.normal(size=(20, INPUTS))
    return weight, common + 0.3 * rng.normal(size=(2000, INPUTS))


def moment(rows) -> np.ndarray:
    found: np.ndarray = rows.T @ rows / len(rows)
    return found


def squared_error(weight, rounded, rows) -> float:
    return float(((rows @ (rounded.values * rounded.scale - weight)) ** 2).mean())


def test_the_output_changes_far_less_than_with_rounding_to_nearest(layer):
    weight, rows = layer
    found = rounded_weight(weight, moment(rows[:1000]))
    nearest = rounded_weight(weight, np.eye(INPUTS))
    # On rows it has not seen.
    assert squared_error(weight, found, rows[1000:]) < 0.3 * squared_error(
        weight, nearest, rows[1000:]
    )


def test_inputs_that_have_nothing_in_common_are_rounded_to_nearest(layer):
    weight, _ = layer
    found = rounded_weight(weight, np.diag(np.linspace(1, 2, INPUTS)))
    np.testing.assert_array_equal(found.values, np.rint(weight / found.scale))
    np.testing.assert_allclose(found.scale, np.abs(weight).max(axis=0) / LEVELS, rtol=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_layer_that_saw_hardly_anything_stays_near_its_weight(layer, rank):
    weight, rows = layer
    found = rounded_weight(weight, rank * moment(rows[:1]))
    assert np.abs(found.values * found.scale - weight).max() <= 1.5 * found.scale.max()


def test_an_output_without_weights_stays_zero(layer):
    weight, rows = layer
    weight[:, 3] = 0
    found = rounded_weight(weight, moment(rows))
    assert not found.values[:, 3].any()
    assert np.isfinite(found.scale).all()
