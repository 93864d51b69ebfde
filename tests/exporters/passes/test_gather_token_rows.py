from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import helper

from sacvit_deploy.exporters.passes import run_passes
from sacvit_deploy.exporters.passes.gather_token_rows import gather_token_rows
from tests.exporters.graphs import FLOAT, INT, contract, op_counts, run_model, small_model

if TYPE_CHECKING:
    import onnx

    from sacvit_deploy.spec import GraphSpec


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
    return small_model(nodes, inputs, outputs, constants), contract(inputs, outputs)


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
        before = small_model([*between, gather], inputs, outputs)
        _, changed = run_passes(before, contract(inputs, outputs), [gather_token_rows])
        assert changed == {"gather_token_rows": 0}
