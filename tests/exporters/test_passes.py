"""The frame around the passes."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from sacvit_deploy.errors import ExportError
from sacvit_deploy.exporters.passes import DEFAULT_PASSES, run_passes
from sacvit_deploy.exporters.passes.fold_constants import fold_constants
from sacvit_deploy.families.config import graph_specs
from tests.exporters.graphs import (
    INT,
    X,
    Y,
    contract,
    doubled,
    harmless,
    op_counts,
    read_graph,
    run_model,
)
from tests.tiny_models import SAC


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
