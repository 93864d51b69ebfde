"""Clustered attention: two kernels, one result, and who may see whom."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from sacvit_deploy.model import attention
from sacvit_deploy.model.attention import Attention, Clusters, cluster_mask

TARGETS, OTHERS = 8, 5
LENGTH = 1 + TARGETS + OTHERS
BOTH_UPDATES = pytest.mark.parametrize("cls_update", ["joint", "mean"])


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = Attention(24, 3).double()
    with torch.no_grad():
        layer.qkv.weight.mul_(4)  # far from uniform attention
    return layer


def tokens(seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, LENGTH, 24, generator=generator, dtype=torch.float64)


def naive(layer: Attention, x: np.ndarray, queries: list[int], keys: list[int]) -> np.ndarray:
    """Attended values before the output projection, one query and one head at a time."""
    weight, bias = layer.qkv.weight.detach().numpy(), layer.qkv.bias.detach().numpy()
    q, k, v = np.split(x @ weight.T + bias, 3, axis=-1)
    rows = []
    for query in queries:
        heads = []
        for head in np.split(np.arange(24), 3):
            scores = q[query, head] @ k[keys][:, head].T / math.sqrt(8)
            weights = np.exp(scores - scores.max())
            heads.append(weights / weights.sum() @ v[keys][:, head])
        rows.append(np.concatenate(heads))
    return np.stack(rows)


@BOTH_UPDATES
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_masked_equals_split(layer, cls_update, dtype, atol):
    layer, x = layer.to(dtype), tokens().to(dtype)
    masked = layer(x, Clusters(TARGETS, cls_update, "masked"))
    split = layer(x, Clusters(TARGETS, cls_update, "split"))
    torch.testing.assert_close(masked, split, rtol=0, atol=atol)
    assert (masked - layer(x)).abs().max() > 1e-2, "the mask must matter for this to say anything"


@BOTH_UPDATES
@pytest.mark.parametrize("kernel", ["masked", "split"])
def test_clusters_equal_a_naive_loop(layer, cls_update, kernel):
    x = tokens()[:1]
    found = layer(x, Clusters(TARGETS, cls_update, kernel))[0].detach().numpy()
    row = x[0].numpy()
    targets = list(range(1, 1 + TARGETS))
    others = list(range(1 + TARGETS, LENGTH))
    if cls_update == "joint":
        class_token = naive(layer, row, [0], list(range(LENGTH)))
    else:
        halves = naive(layer, row, [0], [0, *targets]) + naive(layer, row, [0], [0, *others])
        class_token = halves / 2
    attended = np.concatenate(
        [
            class_token,
            naive(layer, row, targets, [0, *targets]),
            naive(layer, row, others, [0, *others]),
        ]
    )
    wanted = attended @ layer.proj.weight.detach().numpy().T + layer.proj.bias.detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_joint_equals_a_naive_loop_and_gives_its_class_row(layer):
    x = tokens()[:1]
    everything = list(range(LENGTH))
    found, class_row = layer.forward_with_class_row(x)
    attended = naive(layer, x[0].numpy(), everything, everything)
    wanted = attended @ layer.proj.weight.detach().numpy().T + layer.proj.bias.detach().numpy()
    np.testing.assert_allclose(found[0].detach().numpy(), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, layer(x), rtol=0, atol=0)
    assert class_row.shape == (1, 3, LENGTH, 1)
    q, k, _ = layer.qkv(x).reshape(1, LENGTH, 3, 3, 8).permute(2, 0, 3, 1, 4)
    matrix = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(8), dim=-1)
    upright = matrix[:, :, :1].transpose(-2, -1)
    torch.testing.assert_close(class_row.softmax(dim=2), upright, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clusters", [None, Clusters(TARGETS), Clusters(TARGETS, "mean")])
def test_the_class_token_alone_attends_as_among_the_others(layer, clusters):
    x = tokens()
    torch.testing.assert_close(
        layer.class_token(x, clusters), layer(x, clusters)[:, :1], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_scale_gives_the_same(bias):
    torch.manual_seed(0)
    layer = Attention(24, 3, qkv_bias=bias).double()
    x = tokens()
    wanted, weight = layer(x), layer.qkv.weight.clone()
    layer.fold_scale()
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-12)
    assert layer.scale == 1
    torch.testing.assert_close(layer.qkv.weight[:24], weight[:24] * 8**-0.5)
    assert torch.equal(layer.qkv.weight[24:], weight[24:])


@BOTH_UPDATES
def test_without_the_mask_it_is_joint_attention(layer, cls_update, monkeypatch):
    clusters = Clusters(TARGETS, cls_update, "masked")
    shape = cluster_mask(LENGTH, clusters).shape
    monkeypatch.setattr(attention, "cluster_mask", lambda *_: torch.zeros(shape))
    torch.testing.assert_close(layer(tokens(), clusters), layer(tokens()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["masked", "split"])
def test_a_cluster_does_not_see_the_other(layer, kernel):
    x, changed = tokens(), tokens()
    changed[:, 1 + TARGETS :] += 1
    clusters = Clusters(TARGETS, "joint", kernel)
    before, after = layer(x, clusters), layer(changed, clusters)
    targets = slice(1, 1 + TARGETS)
    torch.testing.assert_close(before[:, targets], after[:, targets], rtol=0, atol=0)
    assert (before[:, 0] - after[:, 0]).abs().max() > 1e-3
    assert (before[:, 1 + TARGETS :] - after[:, 1 + TARGETS :]).abs().max() > 1e-3


def test_joint_mask():
    allowed = cluster_mask(5, Clusters(2)) == 0
    wanted = [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 1],
        [1, 0, 0, 1, 1],
    ]
    assert allowed.int().tolist() == wanted


def test_mean_mask_has_the_class_token_in_both_clusters():
    clusters = dataclasses.replace(Clusters(2), cls_update="mean")
    allowed = (cluster_mask(5, clusters) == 0).int().tolist()
    assert allowed[0] == [1, 1, 1, 0, 0]
    assert allowed[1] == [1, 0, 0, 1, 1]
    assert allowed[2:] == (cluster_mask(5, Clusters(2)) == 0).int().tolist()[1:]
