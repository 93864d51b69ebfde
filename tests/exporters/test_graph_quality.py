"""What the exported graphs are made of: nothing dead, doubled or built at run time for nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.exporters.graphs import op_counts, read_graph

GRAPHS = [
    ("sac_host", "early_exit"),
    ("sac_host", "refine"),
    ("sac_graph", "early_exit"),
    ("sac_graph", "refine"),
    ("other_graph", "early_exit"),
    ("other_graph", "refine"),
    ("golden_bundle", "early_exit"),
    ("golden_bundle", "refine"),
    ("dense_bundle", "single"),
]
# LayerNorm 2, MatMul 4 + 2, Add 4 + 2, Split, Reshape 2, Transpose 3, Softmax, GELU 5.
NODES_OF_A_BLOCK = 26


class Exported:
    """One graph with the questions the tests ask."""

    def __init__(self, bundle, role) -> None:
        self.config = bundle.manifest.config
        self.by_graph = bundle.manifest.selection == "graph"
        self.input_kind = bundle.manifest.input_kind
        self.role = role
        self.model: onnx.ModelProto = read_graph(bundle, role)
        self.nodes = list(self.model.graph.node)
        self.ops = op_counts(self.model)
        self.constants = {t.name: t for t in self.model.graph.initializer}
        self.producers = {name: node for node in self.nodes for name in node.output}

    def pairs(self) -> set[tuple[str, str]]:
        """(operator, the operator that reads its output)."""
        return {
            (self.producers[name].op_type, node.op_type)
            for node in self.nodes
            for name in node.input
            if name in self.producers
        }

    @property
    def scored_blocks(self) -> int:
        if self.role != "early_exit":
            return 0
        return int(self.config.depth - self.config.stages.score_first_block)


@pytest.fixture(scope="module", params=GRAPHS, ids="-".join)
def graph(request) -> Exported:
    name, role = request.param
    return Exported(request.getfixturevalue(name), role)


def test_layer_normalization_is_one_operator(graph):
    in_fusion = graph.role == "refine"
    assert graph.ops["LayerNormalization"] == 2 * graph.config.depth + 1 + in_fusion
    assert not {"Pow", "Sqrt", "ReduceVariance"} & set(graph.ops)


def test_a_block_has_no_more_nodes_than_its_arithmetic(graph):
    depth = graph.config.depth
    budget = NODES_OF_A_BLOCK * depth + 15
    # The class token's query, upright, and its row of the scores; the rest is for all at once.
    budget += 3 * graph.scored_blocks + (8 if graph.role == "early_exit" else 0)
    if graph.role == "refine":
        clustered = graph.config.stages.attention == "clustered"
        mean = graph.config.stages.cls_update == "mean"
        budget += (clustered + 7 * mean) * depth + 20 + 23 * graph.by_graph
    assert len(graph.nodes) <= budget


def test_data_is_moved_no_more_than_attention_needs(graph):
    depth = graph.config.depth
    in_fusion = graph.role == "refine"
    assert graph.ops["Transpose"] == 3 * depth + 1 + graph.scored_blocks
    assert graph.ops["Reshape"] <= 2 * depth + 1 + in_fusion + 2 * graph.by_graph
    assert graph.ops["Split"] == depth
    mean = graph.role == "refine" and graph.config.stages.cls_update == "mean"
    # The two ends of the sequence or of the order, and the score or the class token of the last
    # block; with `mean` the class query stands twice.
    answered = 2 * (graph.role != "early_exit")
    assert graph.ops["Slice"] <= graph.scored_blocks + 2 + answered + 3 * depth * mean
    assert graph.ops["Concat"] <= 3 + 2 * depth * mean


def test_the_scale_of_the_attention_is_in_the_weights(graph):
    assert not {("Split", "Mul"), ("Transpose", "Mul")} & graph.pairs()


def test_the_score_is_one_softmax_over_all_blocks(graph):
    scored = graph.role == "early_exit"
    assert graph.ops["Softmax"] == graph.config.depth + scored
    ranked = graph.role == "refine" and graph.by_graph
    assert graph.ops["ReduceSum"] == scored + ranked


@pytest.mark.parametrize("op", ["Transpose", "Reshape", "Slice", "Concat", "Cast", "Expand"])
def test_nothing_is_moved_twice_in_a_row(graph, op):
    assert (op, op) not in graph.pairs()


def test_no_part_is_cut_out_of_what_was_just_joined(graph):
    assert ("Concat", "Slice") not in graph.pairs()
    assert ("Concat", "Split") not in graph.pairs()


def test_there_is_nothing_idle(graph):
    assert not {"Identity", "Dropout", "If", "Loop", "ConstantOfShape", "Constant"} & set(graph.ops)
    chooses = graph.role == "refine" and graph.by_graph
    assert graph.ops["Cast"] == (graph.input_kind == "uint8") + chooses
    wanted = {value.name for value in graph.model.graph.output}
    used = {name for node in graph.nodes for name in node.input} | wanted
    assert all(set(node.output) & used for node in graph.nodes)
    assert set(graph.constants) <= used


def test_shapes_are_constants(graph):
    for node in graph.nodes:
        if node.op_type == "Reshape":
            assert node.input[1] in graph.constants, node.name
    # The class token is repeated for every picture: the one use of the batch size.
    assert graph.ops["Shape"] <= 1


def test_the_half_size_step_has_constant_scales(graph):
    if graph.role != "early_exit":
        assert graph.ops["Resize"] == 0
        return
    (node,) = [node for node in graph.nodes if node.op_type == "Resize"]
    assert len(node.input) == 3
    scales = numpy_helper.to_array(graph.constants[node.input[2]])
    np.testing.assert_array_equal(scales, [1, 1, 0.5, 0.5])
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["mode"] == b"linear"
    assert attributes["coordinate_transformation_mode"] == b"align_corners"


def test_token_rows_are_gathered_whole(graph):
    assert graph.ops["GatherElements"] == 0
    assert graph.ops["GatherND"] == (3 if graph.role == "refine" else 0)


def test_only_the_graph_that_chooses_sorts(graph):
    assert graph.ops["TopK"] == (graph.role == "refine" and graph.by_graph)


def test_what_is_sorted_has_no_ties(graph):
    """A count of the tokens behind: TensorRT promises no order among equal values."""
    made = {name: node.op_type for node in graph.nodes for name in node.output}
    ranked = [node for node in graph.nodes if node.op_type in {"TopK", "ArgMax"}]
    assert {made[node.input[0]] for node in ranked} <= {"ReduceSum"}
