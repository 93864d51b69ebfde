"""Graphs written without the onnx library are those that it would write."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from sacvit_deploy.benchmark.limit.floor import Floor, memory_gb_per_s
from sacvit_deploy.benchmark.limit.product_graph import input_specs, product_graph
from sacvit_deploy.benchmark.limit.products import (
    Product,
    product_of,
    profile_graph,
    profile_of,
)
from sacvit_deploy.engines.registry import OpenedSessions, open_graph
from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.errors import EngineError
from sacvit_deploy.families.config import graph_macs
from sacvit_deploy.records import GraphEntry

FLOAT = Product("float", 5, 8, 200)
PAIR = Product("float", 5, 4, 6, heads=3, has_weights=False)
INT8 = Product("uint8", 5, 8, 16)
HALF = Product("float16", 5, 8, 16)


@pytest.mark.parametrize("products", [[FLOAT], [PAIR, PAIR], [INT8, INT8], [HALF, FLOAT]], ids=str)
def test_the_library_accepts_them(products) -> None:
    made = product_graph(products)
    model = onnx.load_from_string(made.content)
    onnx.checker.check_model(model, full_check=True)
    assert [node.name for node in model.graph.input] == [spec.name for spec in made.inputs]
    assert [node.name for node in model.graph.output] == [spec.name for spec in made.outputs]
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MatMul") == len(products)


def test_weights_are_distinct_and_inputs_shared() -> None:
    made = product_graph([FLOAT, FLOAT])
    model = onnx.load_from_string(made.content)
    weights = [
        onnx.numpy_helper.to_array(t) for t in model.graph.initializer if "weights" in t.name
    ]
    assert [w.shape for w in weights] == [(8, 200)] * 2
    assert not np.array_equal(weights[0], weights[1])
    assert len(made.inputs) == 1
    assert len(product_graph([PAIR, PAIR]).inputs) == 3  # two left operands, one right


def test_they_compute_the_products(tmp_path) -> None:
    made = product_graph([FLOAT, PAIR])
    path = tmp_path / "products.onnx"
    path.write_bytes(made.content)
    graph = GraphEntry("single", "fp32", path.name, made.inputs, made.outputs)
    session = open_graph(path, graph, "onnxruntime", SessionOptions(threads=1))
    generator = np.random.default_rng(1)
    shapes = {"pictures": 2, "heads3": 6}
    feeds = {
        spec.name: generator.standard_normal(
            [shapes[side] if isinstance(side, str) else side for side in spec.shape]
        ).astype(np.float32)
        for spec in made.inputs
    }
    found = session.run(feeds)
    names = [spec.name for number, p in enumerate([FLOAT, PAIR]) for spec in input_specs(number, p)]
    weights = onnx.numpy_helper.to_array(
        next(
            t for t in onnx.load_from_string(made.content).graph.initializer if t.name == "weights0"
        )
    )
    wanted = feeds[names[0]][0, 0] @ weights, feeds[names[1]][0, 0] @ feeds[names[2]][0]
    for answer, expected in zip(found.values(), wanted, strict=True):
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)


def test_backends_that_take_engines_only_have_no_limit() -> None:
    with pytest.raises(EngineError, match="tensorrt runs engines"):
        Floor({"single": (FLOAT,)}, OpenedSessions("tensorrt", {}), SessionOptions())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_only_graphs_with_pictures_are_timed(backend, precision) -> None:
    pytest.importorskip(backend)
    products = (INT8 if precision == "int8" else FLOAT, PAIR)
    opened = OpenedSessions(backend, {}, precision=precision)
    limit = Floor({"early_exit": products, "refine": products}, opened, SessionOptions(threads=1))
    both, first = (
        limit.run({"early_exit": 4, "refine": 1}),
        limit.run({"early_exit": 4, "refine": 0}),
    )
    assert both.graph_ms.keys() == {"early_exit", "refine"}
    assert both.refined == 1
    assert both.overhead_ms == pytest.approx(0)
    assert first.graph_ms.keys() == {"early_exit"}
    limit.close()
    with pytest.raises(EngineError, match="closed"):
        limit.run({"early_exit": 4})


def kernel(operator, inputs, output) -> dict:
    shapes = [{kind: shape} for kind, shape in inputs]
    arguments = {"input_type_shape": shapes, "output_type_shape": [{"float": output}]}
    return {"args": {"op_name": operator, **arguments}}


@pytest.mark.parametrize(
    ("event", "wanted"),
    [
        (("MatMul", [("float", [1, 50, 384])], [1, 50, 1152]), Product("float", 50, 384, 1152)),
        (
            ("FusedMatMul", [("float", [1, 6, 50, 64]), ("float", [1, 6, 64, 50])], [1, 6, 50, 50]),
            Product("float", 50, 64, 50, 6, has_weights=False),
        ),
        (
            (
                "MatMulIntegerToFloat",
                [("uint8", [1, 5, 8]), ("float", []), ("float", [16]), ("int8", [16])],
                [1, 5, 16],
            ),
            Product("uint8", 5, 8, 16),
        ),
        (("Gemm", [("float", [1, 8]), ("float", [100])], [1, 100]), Product("float", 1, 8, 100)),
        (
            ("Conv", [("float", [1, 3, 32, 32]), ("float", [24, 3, 16, 16])], [1, 24, 2, 2]),
            Product("float", 4, 768, 24),
        ),
        (("Softmax", [("float", [1, 6, 50, 50])], [1, 6, 50, 50]), None),
    ],
)  # fmt: skip
def test_kernels_are_read(event, wanted) -> None:
    assert product_of(kernel(*event)) == wanted


def test_of_each_kernel_the_shortest_run_counts() -> None:
    one = kernel("MatMul", [("float", [1, 2, 3])], [1, 2, 4])
    other = kernel("Softmax", [("float", [1, 2])], [1, 2])
    times = ((500, 90), (400, 20), (9000, 30))
    runs = [{**k, "dur": us} for pair in times for k, us in zip((one, other), pair, strict=True)]
    found = profile_of(runs, 3)
    assert found.kernel_ms == {"MatMul": 0.4, "Softmax": 0.02}
    assert found.products == (Product("float", 2, 3, 4),)


def test_the_products_of_a_graph_have_its_cost(dense_bundle) -> None:
    config = dense_bundle.manifest.config
    images = np.zeros((1, 3, *config.image_size), np.float32)
    found = profile_graph(dense_bundle, dense_bundle.graph("single"), {"image": images}, 1)
    macs = sum(p.rows * p.inner * p.columns * p.heads for p in found.products)
    wanted = graph_macs(config, "graph")["single"]
    padded = 96 * 48 * (32 - 24)  # the kernel of the convolution computes 32 channels for 24
    assert macs in (wanted, wanted + padded)
    assert all(ms >= 0 for ms in found.kernel_ms.values())


def test_the_memory_has_a_bandwidth() -> None:
    ticks = iter(range(100))
    assert memory_gb_per_s(lambda: next(ticks)) == pytest.approx(2 * (128 << 20) / 1e9)
