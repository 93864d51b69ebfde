from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from sacvit_deploy.comparison.graphs import LiteralSession, rounding_model, to_model
from sacvit_deploy.exporters.precision.add_precision import linear_weight_shares, weight_shares
from sacvit_deploy.exporters.precision.half_precision import half_model
from tests.exporters.graphs import normalised, op_counts, placed, read_graph, run_model

GRAPHS = [
    ("sac_host", "early_exit"),
    ("sac_host", "refine"),
    ("sac_graph", "early_exit"),
    ("sac_graph", "refine"),
    ("other_graph", "early_exit"),
    ("other_graph", "refine"),
    ("golden_bundle", "refine"),
    ("windowed_graph", "refine"),
    ("lv_pixels", "early_exit"),
    ("lv_pixels", "refine"),
    ("dense_bundle", "single"),
]


class Typed:
    """A graph before and after, and the type of each of its tensors."""

    def __init__(self, original, role) -> None:
        self.role = role
        self.original = original
        self.model = half_model(original)
        self.graph = onnx.shape_inference.infer_shapes(self.model).graph
        infos = [*self.graph.value_info, *self.graph.input, *self.graph.output]
        self.types = {info.name: info.type.tensor_type.elem_type for info in infos}
        self.types |= {tensor.name: tensor.data_type for tensor in self.graph.initializer}
        self.producers = {name: node for node in self.graph.node for name in node.output}

    def type_of(self, node) -> int:
        found: int = self.types[node.input[0]]
        return found

    def above(self, tensor, until) -> list[onnx.NodeProto]:
        """Nodes above a tensor, up to and including the first of one kind."""
        node = self.producers.get(tensor)
        if node is None:
            return []
        further = [] if node.op_type == until else node.input
        return [node, *(found for name in further for found in self.above(name, until))]


@pytest.fixture(scope="module", params=GRAPHS, ids="-".join)
def typed(request) -> Typed:
    name, role = request.param
    return Typed(read_graph(request.getfixturevalue(name), role), role)


def test_it_is_valid_and_keeps_its_border(typed):
    onnx.checker.check_model(typed.model, full_check=True)
    for kind in ("input", "output"):
        before = [(v.name, v.type) for v in getattr(typed.original.graph, kind)]
        assert [(v.name, v.type) for v in getattr(typed.model.graph, kind)] == before


def test_node_names_stay(typed):
    names = [node.name for node in typed.model.graph.node]
    assert len(set(names)) == len(names)
    assert {node.name for node in typed.original.graph.node} <= set(names)


def test_nearly_all_weights_are_half(typed):
    assert weight_shares(typed.model)["half"] >= 0.95
    assert linear_weight_shares(typed.model)["half"] == 1


def test_blocks_compute_in_half(typed):
    original = {node.name for node in typed.original.graph.node}
    kinds = {"MatMul", "Erf", "Conv"}
    nodes = [n for n in typed.graph.node if n.op_type in kinds and n.name in original]
    types = [typed.type_of(node) for node in nodes]
    # The class rows of the score are the only products in FP32.
    class_rows = sum(n.op_type == "MatMul" for n in typed.above("score", "MatMul"))
    assert types.count(TensorProto.FLOAT) == (class_rows if typed.role == "early_exit" else 0)
    assert types.count(TensorProto.FLOAT16) == len(types) - types.count(TensorProto.FLOAT)


def test_layer_normalization_stays_one_operator_in_fp32(typed):
    norms = [n for n in typed.graph.node if n.op_type == "LayerNormalization"]
    assert len(norms) == op_counts(typed.original)["LayerNormalization"]
    for node in norms:
        assert {typed.types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}


def test_what_decides_stays_in_fp32(typed):
    heads = typed.above("logits", "Gemm")
    assert {typed.type_of(node) for node in heads} == {TensorProto.FLOAT}
    products = [node for node in typed.graph.node if node.op_type == "Gemm"]
    assert products
    assert {node.name for node in products} <= {node.name for node in heads}
    for head in products:
        assert typed.types[head.input[0]] == typed.types[head.input[1]] == TensorProto.FLOAT
    for node in typed.graph.node:
        if node.op_type == "Resize":
            assert typed.type_of(node) == TensorProto.FLOAT
        if node.op_type == "TopK":
            assert typed.type_of(node) == TensorProto.FLOAT
            key = typed.above(node.input[0], "MatMul")
            floats = {typed.type_of(n) for n in key} & {TensorProto.FLOAT, TensorProto.FLOAT16}
            assert floats == {TensorProto.FLOAT}
    if typed.role == "early_exit":
        path = typed.above("score", "MatMul")
        assert {"Softmax", "MatMul"} <= {node.op_type for node in path}
        assert {typed.type_of(node) for node in path} == {TensorProto.FLOAT}


def test_keys_are_not_cast_after_their_transposition(typed):
    """The attention reads them transposed; the class row, which is FP32, as they are."""
    for node in typed.graph.node:
        if node.op_type == "Cast" and (maker := typed.producers.get(node.input[0])) is not None:
            assert not (maker.op_type == "Transpose" and is_key(typed, maker))


def is_key(typed, transposition) -> bool:
    above = typed.producers.get(transposition.input[0])
    return above is not None and above.op_type == "Split"


def test_integers_are_left_alone(typed):
    for node in typed.graph.node:
        if node.op_type == "Cast":
            target = next(a.i for a in node.attribute if a.name == "to")
            assert target in {TensorProto.FLOAT, TensorProto.FLOAT16}
            source = typed.types[node.input[0]]
            assert source != target
            made = {TensorProto.UINT8, TensorProto.BOOL}  # pixels, and comparisons of scores
            assert source in {TensorProto.FLOAT, TensorProto.FLOAT16} | made


def test_pixels_become_half_at_once_but_for_the_half_size_step(typed):
    casts = [n for n in typed.graph.node if n.name == "cast_pixels"]
    assert bool(casts) == (typed.types["image"] == TensorProto.UINT8)
    for node in casts:
        pixels = node.output[0]
        readers = {n.op_type for n in typed.graph.node if pixels in n.input}
        assert readers
        wanted = TensorProto.FLOAT if "Resize" in readers else TensorProto.FLOAT16
        assert typed.types[pixels] == wanted


@pytest.mark.parametrize("name", ["sac_host", "sac_graph"])
def test_it_computes_nearly_the_same(name, request):
    bundle = request.getfixturevalue(name)
    original = read_graph(bundle, "early_exit")
    pixels, floats = normalised(bundle, 2)
    image = pixels if bundle.manifest.input_kind == "uint8" else floats
    wanted = run_model(original, image=image)
    for made in (half_model(original), rounding_model(half_model(original))):
        onnx.checker.check_model(made, full_check=True)
        for exact, found in zip(wanted, run_model(made, image=image), strict=True):
            assert found.dtype == np.float32
            assert 0 < np.abs(found - exact).max() < 0.02 * np.abs(exact).max()


def test_kept_nodes_compute_in_fp32_with_exact_weights(sac_host):
    graph = placed(sac_host, "early_exit")
    keep = frozenset(node for node, place in graph.places.items() if place == "blocks.1.mlp.fc1")
    made = half_model(graph.model, keep)
    onnx.checker.check_model(made, full_check=True)
    kept = [n for n in made.graph.node if n.name in keep]
    stored = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    weights = [name for node in kept for name in node.input if name in stored]
    assert weights
    assert {stored[name] for name in weights} == {TensorProto.FLOAT}


def test_everything_kept_is_the_fp32_graph(sac_host):
    original = read_graph(sac_host, "early_exit")
    made = half_model(original, frozenset(node.name for node in original.graph.node))
    assert op_counts(made) == op_counts(original)
    assert weight_shares(made)["float"] == 1


def small(nodes, constants) -> onnx.ModelProto:
    """(2, 4) to logits (2, 4)."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def overflowing() -> onnx.ModelProto:
    """100 * 300 * 4 is more than half can hold, and the result of all is not."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["large"], name="first"),
        helper.make_node("Mul", ["large", "small"], ["y"], name="second"),
        helper.make_node("Gemm", ["y", "eye"], ["logits"], name="head"),
    ]
    return small(nodes, {"w": np.full((4, 4), 300), "small": [0.001], "eye": np.eye(4)})


def normalising(size) -> onnx.ModelProto:
    """A residual stream of about a size, its LayerNormalization, and a head."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["branch"], name="branch"),
        helper.make_node("Add", ["x", "branch"], ["stream"], name="stream"),
        helper.make_node("LayerNormalization", ["stream", "scale", "bias"], ["y"], name="norm"),
        helper.make_node("Gemm", ["y", "eye"], ["logits"], name="head"),
    ]
    constants = {"w": size * np.eye(4), "scale": np.ones(4), "bias": np.zeros(4), "eye": np.eye(4)}
    return small(nodes, constants)


def with_literal_norms(model) -> onnx.ModelProto:
    """The same graph with statistics computed in the type of the input, as TensorRT does."""
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
    for norm in [node for node in graph.nodes if node.op == "LayerNormalization"]:
        x, scale, bias = norm.inputs
        norm.name = "literal"
        last = gs.Constant("last", np.array([-1]))
        epsilon = gs.Constant("epsilon", np.array(1e-5, x.dtype))

        def compute(op, *inputs, typed=x.dtype):
            made = gs.Variable(f"{op}_{len(graph.nodes)}", typed)
            graph.nodes.append(gs.Node(op, made.name, {}, list(inputs), [made]))
            return made

        centred = compute("Sub", x, compute("ReduceMean", x, last))
        variance = compute("ReduceMean", compute("Mul", centred, centred), last)
        deviation = compute("Sqrt", compute("Add", variance, epsilon))
        scaled = compute("Mul", compute("Div", centred, deviation), scale)
        graph.nodes.append(gs.Node("Add", "shifted", {}, [scaled, bias], list(norm.outputs)))
        norm.outputs.clear()
    return to_model(graph.cleanup().toposort())


@pytest.mark.parametrize("size", [1e3, 1e4])
def test_a_large_residual_stream_is_normalised_by_statistics_in_the_type_of_the_input(
    size, tmp_path
):
    """The squares of its values are beyond half; ONNX Runtime alone computes them in FP32."""
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    model = normalising(size)
    (wanted,) = run_model(model, x=x)
    for made in (half_model(model), with_literal_norms(half_model(model))):
        session = LiteralSession(rounding_model(made), tmp_path / "rounding.onnx")
        np.testing.assert_allclose(session.run({"x": x})["logits"], wanted, rtol=0, atol=5e-3)


def test_an_overflow_between_two_nodes_is_seen(tmp_path):
    """ONNX Runtime as it is does not round there, and would miss it."""
    made = half_model(overflowing())
    x = np.full((2, 4), 100, np.float32)
    assert np.isfinite(run_model(made, x=x)[0]).all()
    session = LiteralSession(rounding_model(made), tmp_path / "rounding.onnx")
    assert not np.isfinite(session.run({"x": x})["logits"]).any()


def test_a_weight_half_cannot_hold_becomes_infinite():
    model = overflowing()
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full((4, 4), 1e6, np.float32), "w")
    )
    made = half_model(model)
    stored = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    assert np.isinf(stored["w_half"]).all()
