"""Costs of the paper's tables, the windows of the pooling, and configurations that cannot be."""

from __future__ import annotations

import math

import pytest

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import PRESETS, ModelConfig, graph_macs, preset
from sacvit_deploy.families.stvit import pooling_windows
from tests.families.mac_counter import counted_macs, exported
from tests.tiny_models import SEMANTIC

SMALL = preset("stvit_deit_small_patch16_224")


def _macs_g(config: ModelConfig) -> float:
    return graph_macs(config)["single"] / 1e9


def _normalised_values_g(config: ModelConfig) -> float:
    """The paper's Table 1 counts five operations for each value that a LayerNorm takes in."""
    semantic, image = config.semantic_tokens, config.num_fine_tokens
    tokens = semantic.tokens
    after = config.depth - semantic.first_block - semantic.layers
    rows = 2 * image * semantic.first_block + 2 * tokens * after + tokens
    rows += (tokens + image + tokens) + (tokens + tokens + image + tokens)
    return 5 * rows * config.embed_dim / 1e9


@pytest.mark.parametrize(("size", "table_1"), [("tiny", 0.525), ("small", 1.911), ("base", 7.272)])
def test_costs_of_table_1(size, table_1):
    config = preset(f"stvit_deit_{size}_patch16_224")
    assert _macs_g(config) + _normalised_values_g(config) == pytest.approx(table_1, abs=6e-4)


@pytest.mark.parametrize(("side", "published"), [(4, 1.91), (6, 2.20), (8, 2.62), (10, 3.16)])
def test_costs_of_more_tokens(side, published):
    assert _macs_g(SMALL.replace(side=side)) == pytest.approx(published, abs=0.015)


@pytest.mark.parametrize(("layers", "table_8"), [(2, 1.907), (3, 1.967), (4, 2.027)])
def test_costs_of_table_8(layers, table_8):
    assert round(_macs_g(SMALL.replace(layers=layers)), 3) == table_8


@pytest.mark.parametrize("pooling", ["intra", "mean"])
def test_the_exported_graph_costs_what_the_model_says(pooling):
    config = SEMANTIC.replace(pooling=pooling)
    # The weights of the pooling are a sum and not a product in the graph.
    windows = pooling_windows(config.fine_grid, config.semantic_tokens.side)
    sums = sum(map(len, windows.cells)) * config.embed_dim if pooling == "intra" else 0
    assert counted_macs(exported(config, "single")) + sums == graph_macs(config, "graph")["single"]


def test_fourteen_is_padded_to_sixteen_as_the_authors_do():
    windows = pooling_windows((14, 14), 4)
    assert windows.size == (4, 4)
    first, *_, last = windows.cells
    assert first == (-1, -1, -1, -1, -1, 0, 1, 2, -1, 14, 15, 16, -1, 28, 29, 30)
    assert last[:4] == (11 * 14 + 11, 11 * 14 + 12, 11 * 14 + 13, -1)
    inside = [cell for cells in windows.cells for cell in cells if cell >= 0]
    assert sorted(inside) == list(range(196))


@pytest.mark.parametrize(("grid", "side"), [((14, 14), 6), ((14, 14), 8), ((14, 14), 10)])
def test_other_counts_have_the_windows_of_adaptive_pooling(grid, side):
    bounds = [(i * 14 // side, math.ceil((i + 1) * 14 / side)) for i in range(side)]
    for index, cells in enumerate(pooling_windows(grid, side).cells):
        (top, bottom), (left, right) = bounds[index // side], bounds[index % side]
        wanted = [14 * r + c for r in range(top, bottom) for c in range(left, right)]
        assert [cell for cell in cells if cell >= 0] == wanted


@pytest.mark.parametrize("grid", [(1, 1), (5, 9), (14, 14), (18, 18), (24, 7)])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 7])
def test_every_token_is_in_a_window_and_no_window_is_empty(grid, side):
    if side > min(grid):
        return
    windows = pooling_windows(grid, side)
    assert len(windows.cells) == side**2
    assert {len(cells) for cells in windows.cells} == {math.prod(windows.size)}
    inside = [{cell for cell in cells if cell >= 0} for cells in windows.cells]
    assert all(inside)
    assert set().union(*inside) == set(range(math.prod(grid)))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"side": 15}, "side"),
        ({"side": 0}, "side"),
        ({"layers": 1}, "layers"),
        ({"first_block": 11}, "first_block"),
        ({"first_block": -1}, "first_block"),
        ({"pooling": "max"}, "pooling"),
        ({"aux_weight": 0.5}, "aux_weight"),
        ({"semantic": None}, "semantic"),
        ({"image_size": (224, 230)}, "image_size"),
    ],
)
def test_a_network_that_cannot_be_is_refused(fields, named):
    with pytest.raises(ConfigError, match=named):
        SMALL.replace(**fields)


def test_only_this_family_has_semantic_tokens():
    owners = {config.family for config in PRESETS.values() if config.semantic is not None}
    assert owners == {"stvit"}
    with pytest.raises(ConfigError, match="no semantic tokens"):
        _ = preset("deit_small_patch16_224").semantic_tokens
