"""Each pass on a graph of its own, and the frame around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from sacvit_deploy.errors import ExportError
from sacvit_deploy.exporters.passes import DEFAULT_PASSES, run_passes
from sacvit_deploy.exporters.passes.fold_constants import fold_constants
from sacvit_deploy.exporters.passes.fold_normalisation import FoldNormalisation
from sacvit_deploy.exporters.passes.gather_token_rows import gather_token_rows
from sacvit_deploy.exporters.passes.order_gelu import order_gelu
from sacvit_deploy.exporters.passes.static_resize import static_resize
from sacvit_deploy.families.config import graph_specs
from sacvit_deploy.spec import GraphSpec, Preprocessing, TensorSpec
from tests.exporters.graphs import op_counts, read_graph, run_model
from tests.tiny_models import SAC

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def model(nodes, inputs, outputs, constants=None) -> onnx.ModelProto:
    """`inputs` and `outputs`: name to (type, shape)."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made)


def contract(inputs, outputs) -> GraphSpec:
    dtypes: dict[int, Any] = {FLOAT: "float32", INT: "int64", TensorProto.UINT8: "uint8"}
    specs = [
        tuple(TensorSpec(name, dtypes[dtype], shape) for name, (dtype, shape) in tensors.items())
        for tensors in (inputs, outputs)
    ]
    return GraphSpec("single", "model.onnx", *specs)


# The frame.

X, Y = {"x": (FLOAT, ("batch", 4))}, {"y": (FLOAT, ("batch", 4))}


def doubled() -> onnx.ModelProto:
    """y = (1 + 1) x, and a node that nobody reads."""
    nodes = [
        helper.make_node("Add", ["one", "one"], ["two"], name="constant"),
        helper.make_node("Mul", ["x", "two"], ["y"], name="mul"),
        helper.make_node("Neg", ["x"], ["nobody"], name="dead"),
    ]
    return model(nodes, X, Y, {"one": np.ones(4, np.float32)})


def harmless(graph: gs.Graph) -> int:
    return 0


def test_passes_are_run_in_order_and_counted():
    seen = []

    def first(graph: gs.Graph) -> int:
        seen.append([node.name for node in graph.nodes])
        return 3

    def second(graph: gs.Graph) -> int:
        seen.append([node.name for node in graph.nodes])
        return 0

    found, changed = run_passes(doubled(), contract(X, Y), [first, second])
    assert changed == {"first": 3, "second": 0}
    assert seen == [["constant", "mul", "dead"], ["constant", "mul"]]
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(run_model(found, x=x)[0], 2 * x)


def unknown_operator(graph: gs.Graph) -> int:
    graph.nodes[0].op = "Doubling"
    return 1


def wrong_axis(graph: gs.Graph) -> int:
    mul = next(node for node in graph.nodes if node.op == "Mul")
    mul.inputs[1] = gs.Constant("five", np.ones(5, np.float32))
    return 1


def cut(graph: gs.Graph) -> int:
    next(node for node in graph.nodes if node.op == "Mul").outputs.clear()
    return 1


@pytest.mark.parametrize("broken", [unknown_operator, wrong_axis, cut])
def test_a_pass_that_leaves_an_invalid_graph_is_named(broken):
    with pytest.raises(ExportError, match=f"invalid after the passes harmless, {broken.__name__}:"):
        run_passes(doubled(), contract(X, Y), [harmless, broken, fold_constants])


def renames_output(graph: gs.Graph) -> int:
    graph.outputs[0].name = "z"
    return 1


def fixes_batch(graph: gs.Graph) -> int:
    graph.inputs[0].shape = graph.outputs[0].shape = [1, 4]
    return 1


def drops_output(graph: gs.Graph) -> int:
    graph.outputs = [graph.nodes[0].outputs[0]]
    return 1


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (renames_output, r"outputs of the single graph are \[\('z'.*contract says \[\('y'"),
        (fixes_batch, r"inputs .*\(1, 4\).*'batch'"),
        (drops_output, "outputs .*'two'"),
    ],
)
def test_a_pass_that_breaks_the_contract_is_refused(broken, says):
    with pytest.raises(ExportError, match=says):
        run_passes(doubled(), contract(X, Y), [broken])


def test_a_graph_of_another_contract_is_refused_without_a_pass():
    with pytest.raises(ExportError, match=r"float32.*int64"):
        run_passes(doubled(), contract({"x": (INT, ("batch", 4))}, Y), [])


@pytest.mark.parametrize("name", ["sac_host", "sac_graph"])
def test_what_is_exported_needs_no_pass_again(name, request):
    bundle = request.getfixturevalue(name)
    manifest = bundle.manifest
    for spec in graph_specs(SAC, selection=manifest.selection, input_kind=manifest.input_kind):
        exported = read_graph(bundle, spec.role)
        again, changed = run_passes(exported, spec, DEFAULT_PASSES)
        assert set(changed.values()) == {0}
        assert op_counts(again) == op_counts(exported)


# fold_constants


def test_what_does_not_depend_on_the_input_is_folded():
    found, changed = run_passes(doubled(), contract(X, Y), [harmless, fold_constants])
    assert changed["fold_constants"] == 1
    assert op_counts(found) == {"Mul": 1}
    x = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(run_model(found, x=x)[0], 2 * x)


# static_resize


def resized(height: int, width: int) -> tuple[onnx.ModelProto, GraphSpec]:
    """Half size, the sizes built at run time as the exporter does it."""
    image = {"image": (FLOAT, ("batch", 3, height, width))}
    half = {"half": (FLOAT, ("batch", 3, height // 2, width // 2))}
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"], end=2),
        helper.make_node("Concat", ["shape", "half_size"], ["sizes"], axis=0),
        helper.make_node(
            "Resize",
            ["image", "", "", "sizes"],
            ["half"],
            name="resize",
            mode="linear",
            coordinate_transformation_mode="align_corners",
        ),
    ]
    made = model(nodes, image, half, {"half_size": np.array([height // 2, width // 2])})
    return made, contract(image, half)


@pytest.mark.parametrize("size", [(8, 12), (64, 64), (14, 18)])
def test_resize_by_scales_gives_what_resize_by_sizes_gave(size):
    before, spec = resized(*size)
    after, changed = run_passes(before, spec, [static_resize])
    assert changed == {"static_resize": 1}
    assert op_counts(after) == {"Resize": 1}
    image = np.random.default_rng(0).normal(size=(3, 3, *size)).astype(np.float32)
    wanted, found = run_model(before, image=image)[0], run_model(after, image=image)[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert run_passes(after, spec, [static_resize])[1] == {"static_resize": 0}


# gather_token_rows


def gathered(axis: int = 1) -> tuple[onnx.ModelProto, GraphSpec]:
    """Rows of (B, 6, 5) by (B, 3) as torch.gather wants it; axis 2 means something else."""
    inputs = {"tokens": (FLOAT, ("batch", 6, 5)), "index": (INT, ("batch", 3))}
    outputs = {"rows": (FLOAT, ("batch", 3, 5))}
    nodes = [
        helper.make_node("Unsqueeze", ["index", "last"], ["column"]),
        helper.make_node("Expand", ["column", "width"], ["everywhere"]),
        helper.make_node("GatherElements", ["tokens", "everywhere"], ["rows"], axis=axis),
    ]
    constants = {"last": np.array([2]), "width": np.array([1, 1, 5])}
    return model(nodes, inputs, outputs, constants), contract(inputs, outputs)


def rows_of(made: onnx.ModelProto, tokens: np.ndarray, index: np.ndarray) -> np.ndarray:
    found: np.ndarray = run_model(made, tokens=tokens, index=index)[0]
    return found


def test_whole_rows_are_gathered():
    before, spec = gathered()
    after, changed = run_passes(before, spec, [gather_token_rows])
    assert changed == {"gather_token_rows": 1}
    assert op_counts(after) == {"Unsqueeze": 1, "GatherND": 1}
    generator = np.random.default_rng(0)
    tokens = generator.normal(size=(4, 6, 5)).astype(np.float32)
    index = generator.integers(0, 6, (4, 3))
    found = rows_of(after, tokens, index)
    np.testing.assert_array_equal(found, np.take_along_axis(tokens, index[:, :, None], 1))
    np.testing.assert_array_equal(found, rows_of(before, tokens, index))


def test_a_gather_along_another_axis_is_left_alone():
    before, spec = gathered(axis=2)
    after, changed = run_passes(before, spec, [gather_token_rows])
    assert changed == {"gather_token_rows": 0}
    assert op_counts(after) == op_counts(before)


def test_a_gather_whose_index_differs_within_a_row_is_left_alone():
    inputs = {"tokens": (FLOAT, ("batch", 6, 5)), "index": (INT, ("batch", 3, 5))}
    outputs = {"rows": (FLOAT, ("batch", 3, 5))}
    for between in ([], [helper.make_node("Abs", ["index"], ["used"])]):
        used = "used" if between else "index"
        gather = helper.make_node("GatherElements", ["tokens", used], ["rows"], axis=1)
        before = model([*between, gather], inputs, outputs)
        _, changed = run_passes(before, contract(inputs, outputs), [gather_token_rows])
        assert changed == {"gather_token_rows": 0}


# order_gelu


def gelu(factors: tuple[str, str], last: tuple[str, str]) -> onnx.ModelProto:
    """y = x * (0.5 * (1 + erf(x / sqrt 2))), the factors of each product in any order."""
    nodes = [
        helper.make_node("Div", ["x", "root"], ["scaled"], name="div"),
        helper.make_node("Erf", ["scaled"], ["erf"], name="erf"),
        helper.make_node("Add", ["erf", "one"], ["sum"], name="add"),
        helper.make_node("Mul", factors, ["inner"], name="inner"),
        helper.make_node("Mul", last, ["y"], name="outer"),
    ]
    constants = {"root": np.sqrt(2.0), "one": 1.0, "half": 0.5}
    return model(nodes, X, Y, {k: np.array(v, np.float32) for k, v in constants.items()})


@pytest.mark.parametrize("factors", [("half", "sum"), ("sum", "half")])
@pytest.mark.parametrize("last", [("x", "inner"), ("inner", "x")])
def test_gelu_is_put_in_the_order_that_runtimes_fuse(factors, last):
    before = gelu(factors, last)
    after, changed = run_passes(before, contract(X, Y), [order_gelu])
    assert changed == {"order_gelu": 1}
    outer = next(node for node in after.graph.node if node.name == "outer")
    assert list(outer.input) == ["inner", "half"]
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(run_model(after, x=x)[0], run_model(before, x=x)[0], atol=1e-6)


def test_another_product_with_erf_is_left_alone():
    before = gelu(("sum", "sum"), ("x", "inner"))
    assert run_passes(before, contract(X, Y), [order_gelu])[1] == {"order_gelu": 0}


# fold_normalisation

PREPROCESSING = Preprocessing((8, 8), mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.9))


def convolved(*, bias: bool, count: int = 1) -> tuple[onnx.ModelProto, GraphSpec, GraphSpec]:
    """Patches of 4x4; the weight is read a second time, as a renamed copy may be."""
    image = {"image": (FLOAT, ("batch", 3, 8, 8))}
    pixels = {"image": (TensorProto.UINT8, ("batch", 3, 8, 8))}
    outputs = {"patches": (FLOAT, ("batch", 6, 2, 2)), "weight_sum": (FLOAT, ())}
    generator = np.random.default_rng(0)
    constants = {"weight": generator.normal(size=(6, 3, 4, 4)).astype(np.float32)}
    if bias:
        constants["bias"] = generator.normal(size=6).astype(np.float32)
    names = [f"part{i}" for i in range(count)]
    nodes = [
        helper.make_node("Conv", ["image", *constants], [name], name=name, strides=[4, 4])
        for name in names
    ]
    nodes += [
        helper.make_node("Sum", names, ["patches"]),
        helper.make_node("ReduceSum", ["weight"], ["weight_sum"], keepdims=0),
    ]
    made = model(nodes, image, outputs, constants)
    return made, contract(image, outputs), contract(pixels, outputs)


@pytest.mark.parametrize("bias", [True, False])
def test_pixels_give_what_the_normalised_picture_gave(bias):
    before, _, spec = convolved(bias=bias)
    after, changed = run_passes(before, spec, [FoldNormalisation(PREPROCESSING)])
    assert changed == {"fold_normalisation": 1}
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    image = ((pixels / 255 - mean) / std).astype(np.float32)
    found, wanted = run_model(after, image=pixels), run_model(before, image=image)
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=2e-5)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-6)


@pytest.mark.parametrize("count", [0, 2])
def test_pixels_need_exactly_one_convolution(count):
    if count:
        before, spec, _ = convolved(bias=True, count=count)
    else:
        before, spec = doubled(), contract(X, Y)
    with pytest.raises(ExportError, match=f"has {count} Conv"):
        run_passes(before, spec, [FoldNormalisation(PREPROCESSING)])
