from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from sacvit_deploy.exporters.precision.calibrate import CalibratingSession, quantised_nodes
from sacvit_deploy.exporters.precision.places import linear_nodes, places
from sacvit_deploy.exporters.precision.quantize import int8_model
from sacvit_deploy.exporters.precision.shares import linear_weight_shares
from tests.exporters.graphs import normalised, op_counts, read_graph, run_model, session

GRAPHS = [
    ("sac_host", "early_exit"),
    ("sac_host", "refine"),
    ("sac_graph", "early_exit"),
    ("sac_graph", "refine"),
    ("dense_bundle", "single"),
]


class Quantised:
    def __init__(self, bundle, role) -> None:
        self.original = read_graph(bundle, role)
        self.config = bundle.manifest.config
        entry = bundle.graph(role, "int8")
        self.model = onnx.load(bundle.graph_path(entry))
        self.nodes = list(self.model.graph.node)
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}

    def comes_from(self, name) -> str:
        return self.producers[name].op_type if name in self.producers else ""


@pytest.fixture(scope="module", params=GRAPHS, ids="-".join)
def graph(request, with_precisions) -> Quantised:
    name, role = request.param
    return Quantised(with_precisions(request.getfixturevalue(name)), role)


def test_it_is_valid_and_node_names_stay(graph):
    onnx.checker.check_model(graph.model, full_check=True)
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    assert {node.name for node in graph.original.graph.node} <= set(names)


def test_exactly_the_linear_layers_and_the_patches_are_quantised(graph):
    wanted = {n.name for n in linear_nodes(graph.original) if n.op_type != "Gemm"}
    assert len(wanted) >= 4 * graph.config.depth + 1
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
        if node.op_type not in {"MatMul", "Conv"}:
            continue
        maker = graph.producers[node.input[1]]
        if maker.op_type != "DequantizeLinear":
            continue
        weight, scale, zero = (graph.constants[name] for name in maker.input)
        axis = next(a.i for a in maker.attribute if a.name == "axis")
        assert weight.dtype == zero.dtype == np.int8
        assert scale.shape == (weight.shape[axis],)
        assert axis == (0 if node.op_type == "Conv" else 1)
        assert not zero.any()
        assert np.abs(weight.astype(int)).max() == 127
    floats = Counter(v.shape for v in graph.constants.values() if v.dtype == np.float32)
    quantised = {w.shape for w in graph.constants.values() if w.dtype == np.int8 and w.ndim > 1}
    assert not quantised & set(floats)
    assert linear_weight_shares(graph.model)["int8"] >= 0.8


def unsmoothed(graph, name: str) -> str:
    """The tensor itself, or what a product made for smoothing takes."""
    maker = graph.producers.get(name)
    return maker.input[0] if maker and maker.name.endswith("_smooth") else name


def test_activations_are_symmetric_int8(graph):
    quantizers = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    inputs = {node.input[0] for node in linear_nodes(graph.original) if node.op_type != "Gemm"}
    assert {unsmoothed(graph, node.input[0]) for node in quantizers} == inputs
    for node in quantizers:
        scale, zero = (graph.constants[name] for name in node.input[1:])
        assert zero.dtype == np.int8
        assert zero == 0
        assert scale.shape == ()
        assert scale > 0


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
    images = [batch.copy() for batch in batches]
    images[0][0, 0, 0, :2] = 1000
    model, ranges = ranges_of(sac_host, method, tmp_path, images)
    name = quantised_nodes(model)[0].input[0]
    low, high = (float(v) for v in ranges[name].range_value[:2])
    values = run_model(with_outputs(model, [name]), image=np.concatenate(images))[0]
    assert 0 < max(-low, high) < 0.9 * np.abs(values).max()


def test_the_calibrators_keep_quiet(sac_host, batches, tmp_path, capsys):
    ranges_of(sac_host, "percentile", tmp_path, batches)
    assert capsys.readouterr().out == ""


def test_kept_nodes_stay_float(sac_host, batches, tmp_path):
    model, ranges = ranges_of(sac_host, "minmax", tmp_path, batches)
    where = places(model, "early_exit")
    keep = frozenset(node for node, place in where.items() if place.startswith("blocks.0."))
    before, after = (op_counts(int8_model(model, ranges, k)) for k in (frozenset(), keep))
    assert before["QuantizeLinear"] - after["QuantizeLinear"] == 4
    everything = frozenset(node.name for node in model.graph.node)
    assert int8_model(model, ranges, everything) == model


def test_the_original_is_not_changed(sac_host, batches, tmp_path):
    model, ranges = ranges_of(sac_host, "minmax", tmp_path, batches)
    before = model.SerializeToString()
    made = int8_model(model, ranges)
    assert model.SerializeToString() == before
    assert any(t.data_type == TensorProto.INT8 for t in made.graph.initializer)
    image = batches[0]
    for exact, found in zip(
        run_model(model, image=image), run_model(made, image=image), strict=True
    ):
        assert 0 < np.abs(found - exact).max() < 0.3 * np.abs(exact).max()
