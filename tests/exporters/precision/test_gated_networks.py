"""FP16 and INT8 graphs of networks with gates: which tokens are kept is decided in floats."""

from __future__ import annotations

import onnx
import pytest

from sacvit_deploy.comparison.graphs import Graph, constants, linear_nodes, matmuls, read_graph
from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.exporters.precision import PrecisionRequest, add_precision
from sacvit_deploy.runtime.load import load
from tests.exporters.precision.conftest import as_random
from tests.fakes import random_pictures
from tests.tiny_models import GATED, strong_gated

QUANTISED = "DequantizeLinear"
GATES = ("model.gates.0", "model.gates.1")


@pytest.fixture(scope="module", params=["masked", "exact", "capacity"])
def bundle(request, tmp_path_factory):
    fields = {"capacity": (64, 40), "strict": True} if request.param == "capacity" else {}
    config = GATED.replace(mode=request.param, **fields)
    path = tmp_path_factory.mktemp("gated") / request.param
    return export_bundle(strong_gated(config), path, ExportOptions())


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_gates_decide_as_before(bundle, pictures, precision):
    lower = add_precision(bundle, PrecisionRequest(precision, pictures))
    record = lower.manifest.precisions[precision]
    assert record.agreement.target_overlap >= (0.98 if precision == "fp16" else 0.9)
    with load(lower.path, precision=precision, backend="onnxruntime", threads=1) as pipeline:
        results = pipeline(random_pictures(3))
    assert all(result.kept_tokens for result in results)


def test_int8_leaves_the_blocks_before_the_gates_in_floating_point(bundle, pictures, tmp_path):
    copy = as_random(bundle, tmp_path / "copy")
    lower = add_precision(copy, PrecisionRequest("int8", pictures))
    entry = lower.graph("single", "int8")
    layers = Graph.of(read_graph(bundle.graph_path(bundle.graph("single", "fp32")))).linear_layers
    gated = {node.name for place, node in layers.items() if not place.startswith("blocks.0.")}
    assert len(gated) == 2 * 4
    for name in entry.files:
        nodes = onnx.load(lower.path / name).graph.node
        kinds = {output: node.op_type for node in nodes for output in node.output}
        quantised = [n.name for n in nodes if kinds.get([*n.input, "", ""][1]) == QUANTISED]
        assert set(quantised) == gated


def test_the_layers_of_gates_are_no_linear_layers_of_blocks(bundle):
    model = read_graph(bundle.graph_path(bundle.graph("single", "fp32")))
    known = constants(model)
    every = [node.input[1] for node in linear_nodes(model) if node.op_type == "MatMul"]
    chosen = [node.input[1] for node in matmuls(model)]
    left_out = set(every) - set(chosen)
    assert len(left_out) == 4
    assert all(name.startswith(GATES) for name in left_out)
    assert not any(name.startswith(GATES) for name in chosen)
    assert left_out <= known
    assert len(chosen) == 3 * 4
