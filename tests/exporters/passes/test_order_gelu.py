from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from sacvit_deploy.exporters.passes import run_passes
from sacvit_deploy.exporters.passes.order_gelu import order_gelu
from tests.exporters.graphs import X, Y, contract, run_model, small_model

if TYPE_CHECKING:
    import onnx


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
    return small_model(nodes, X, Y, {k: np.array(v, np.float32) for k, v in constants.items()})


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
