from __future__ import annotations

import numpy as np
import torch

from sacvit_deploy.model.deformable import DeformableAttention, centres

PICTURES = (4, 6), (2, 3)
QUERIES = ((3, 5),)


def attention(seed: int = 0) -> DeformableAttention:
    torch.manual_seed(seed)
    made = DeformableAttention(12, 3, 2, queries=QUERIES, pictures=PICTURES).double()
    for parameter in made.parameters():
        parameter.data = torch.randn_like(parameter)
    return made


def interpolated(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """A picture (rows, columns, n) at a place in cells, with zeros around it."""
    rows, columns, _ = picture.shape
    column, row = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    total = np.zeros(picture.shape[2])
    for r in (row, row + 1):
        for c in (column, column + 1):
            share = (1 - abs(x - 0.5 - c)) * (1 - abs(y - 0.5 - r))
            if 0 <= r < rows and 0 <= c < columns:
                total += share * picture[r, c]
    return total


def written_out(attn: DeformableAttention, queries: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The equation for one picture, (Q, D) and (L, D), with loops."""

    def linear(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())

    heads, points, count = attn.num_heads, attn.num_points, len(queries)
    offsets = linear(attn.sampling_offsets, queries).reshape(count, heads, len(PICTURES), points, 2)
    scores = linear(attn.attention_weights, queries).reshape(count, heads, -1)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    weights = weights.reshape(count, heads, len(PICTURES), points)
    values = np.split(linear(attn.value_proj, features), [4 * 6])
    result = np.zeros((count, heads, queries.shape[1] // heads))
    for level, (rows, columns) in enumerate(PICTURES):
        picture = values[level].reshape(rows, columns, heads, -1)
        for query in range(count):
            row, column = divmod(query, QUERIES[0][1])
            x, y = (column + 0.5) / QUERIES[0][1] * columns, (row + 0.5) / QUERIES[0][0] * rows
            for head in range(heads):
                for point in range(points):
                    dx, dy = offsets[query, head, level, point]
                    found = interpolated(picture[:, :, head], x + dx, y + dy)
                    result[query, head] += weights[query, head, level, point] * found
    return linear(attn.output_proj, result.reshape(count, -1))


@torch.no_grad()
def test_it_is_the_equation():
    attn = attention()
    queries = torch.randn(2, 15, 12, dtype=torch.float64)
    features = torch.randn(2, 30, 12, dtype=torch.float64)
    found = attn(queries, features)
    for row in range(2):
        wanted = written_out(attn, queries[row].numpy(), features[row].numpy())
        np.testing.assert_allclose(found[row].numpy(), wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_folding_changes_nothing():
    attn = attention()
    inputs = torch.randn(1, 15, 12).double(), torch.randn(1, 30, 12).double()
    wanted = attn(*inputs)
    attn.fold()
    torch.testing.assert_close(attn(*inputs), wanted, rtol=0, atol=1e-12)


def test_centres_are_x_and_y_row_by_row():
    found = centres(((2, 1), (1, 4)))
    np.testing.assert_allclose(
        found, [[0, -0.5], [0, 0.5], [-0.75, 0], [-0.25, 0], [0.25, 0], [0.75, 0]]
    )


@torch.no_grad()
def test_a_new_one_looks_around_each_query():
    attn = DeformableAttention(8, 4, 3, queries=QUERIES, pictures=PICTURES)
    attn.reset_parameters()
    first = attn.sampling_offsets.bias.reshape(4, 2, 3, 2)
    wanted = {0: (1, 0), 1: (0, 1), 2: (-1, 0), 3: (0, -1)}
    for head, direction in wanted.items():
        for point in range(3):
            step = torch.tensor(direction) * (point + 1.0)
            for level in range(2):
                torch.testing.assert_close(first[head, level, point], step, rtol=0, atol=1e-6)
    assert not attn.sampling_offsets.weight.any()
