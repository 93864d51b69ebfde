from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from sacvit_deploy.exporters.passes import run_passes
from sacvit_deploy.exporters.passes.store_half import store_half
from tests.exporters.graphs import X, Y, contract, op_counts, run_model, small_model


def test_large_weights_are_stored_in_half_and_computed_with_in_float():
    weight = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float16).astype(np.float32)
    back, bias = -weight.T, np.ones(4, np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["wide"], name="first"),
        helper.make_node("MatMul", ["wide", "back"], ["narrow"], name="second"),
        helper.make_node("Add", ["narrow", "bias"], ["y"], name="add"),
    ]
    before = small_model(nodes, X, Y, {"weight": weight, "back": back, "bias": bias})
    after, changed = run_passes(before, contract(X, Y), [store_half])
    assert changed == {"store_half": 2}
    assert op_counts(after) == {"Cast": 2, "MatMul": 2, "Add": 1}
    stored = {tensor.name: tensor for tensor in after.graph.initializer}
    assert stored["bias"].data_type == TensorProto.FLOAT
    half = numpy_helper.to_array(stored["weight_half"])
    np.testing.assert_array_equal(half, weight.astype(np.float16))
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    wanted = x @ weight @ back + bias
    np.testing.assert_allclose(run_model(after, x=x)[0], wanted, rtol=1e-5, atol=1e-4)


def test_what_half_does_not_hold_stays_as_it_is():
    weight = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float32)
    huge = np.full((300, 4), 1e6, np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["wide"], name="first"),
        helper.make_node("MatMul", ["wide", "huge"], ["y"], name="second"),
    ]
    before = small_model(nodes, X, Y, {"weight": weight, "huge": huge})
    after, changed = run_passes(before, contract(X, Y), [store_half])
    assert changed == {"store_half": 0}
    assert op_counts(after) == {"MatMul": 2}
