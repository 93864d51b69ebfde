"""Multi-head self-attention, jointly over all tokens or inside each cluster.

Tokens of the second stage have the fixed order `[class; 4M targets; N-M non-targets]`. Clustered
attention is therefore one attention under a constant mask, or one attention per cluster. Both
give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

ClusterKernel = Literal["masked", "split"]


@dataclass(frozen=True)
class Clusters:
    """Clustered attention of a sequence `[class; targets; non-targets]`.

    Attributes:
        num_targets: Number of fine tokens in the target cluster, 4M.
        cls_update: `joint`: the class query attends to all tokens. `mean`: it attends inside each
            cluster, and the two results are averaged.
        kernel: `masked` or `split`, which compute the same numbers.
    """

    num_targets: int
    cls_update: Literal["joint", "mean"] = "joint"
    kernel: ClusterKernel = "masked"


class Attention(nn.Module):
    """DeiT's attention: one qkv projection, scale head_dim^-0.5 on the query.

    The query is scaled before the first matrix product, where fused attention kernels expect it. In
    a network that is deployed, the scale is in the weights.
    """

    def __init__(self, width: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (width // num_heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, clusters: Clusters | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Attend within x (B, L, D), jointly if `clusters` is None.

        A mask is for joint attention alone: it is added to the scores (B, heads, L, L).
        """
        q, k, v = self._project(x)
        if clusters is None:
            return self._merge(joint_attention(q, k, v, mask))
        kernel = _split_attention if clusters.kernel == "split" else _masked_attention
        return self._merge(kernel(q, k, v, clusters))

    def forward_with_class_row(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Attend jointly, and compute the class token's row of the scores.

        Returns:
            The attended sequence (B, L, D) and the class row before the softmax, (B, heads, L, 1).
            The row is computed separately, so that a backend can still fuse the attention. It
            stands upright, so that the key is read as it is: in FP16 the row alone is FP32, and
            would need a transposed copy of the key of its own.
        """
        q, k, v = self._project(x)
        return self._merge(joint_attention(q, k, v)), k @ q[:, :, :1].transpose(-2, -1)

    def class_token(
        self, x: Tensor, clusters: Clusters | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Attend with the class token alone, as `forward` does: (B, L, D) to (B, 1, D)."""
        q, k, v = self._project(x)
        if clusters is not None and clusters.cls_update == "mean":
            scores = q[:, :, :1] @ k.transpose(-2, -1)
            twice = cluster_mask(x.shape[1], clusters)[:2].to(scores)
            return self._merge(torch.softmax(scores + twice, dim=-1).mean(2, keepdim=True) @ v)
        return self._merge(joint_attention(q[:, :, :1], k, v, mask))

    @torch.no_grad()
    def fold_scale(self) -> None:
        """Move the scale of the query into the weights of the projection."""
        for parameter in (self.qkv.weight, self.qkv.bias):
            if parameter is not None:
                parameter[: self.qkv.in_features].mul_(self.scale)
        self.scale = 1.0

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project (B, L, D) to scaled query, key and value, (B, heads, L, head_dim) each."""
        batch, length, width = x.shape
        heads = self.qkv(x).reshape(batch, length, 3 * self.num_heads, width // self.num_heads)
        # One transposition for all three: separate ones cost more operators in every backend.
        query, key, value = heads.transpose(1, 2).chunk(3, dim=1)
        return query if self.scale == 1 else query * self.scale, key, value

    def _merge(self, heads: Tensor) -> Tensor:
        merged: Tensor = self.proj(heads.transpose(1, 2).flatten(2))
        return merged


class CrossAttention(nn.Module):
    """Attention of some tokens to others: q of the queries, k and v of the others."""

    def __init__(self, width: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (width // num_heads) ** -0.5
        self.q = nn.Linear(width, width, bias=qkv_bias)
        self.kv = nn.Linear(width, 2 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Attend from (B, S, D) to (B, L, D).

        Returns:
            The attended (B, S, D), and the mean over heads of the attention, (B, S, L).
        """
        query = self._heads(self.q(queries))
        key, value = self._heads(self.kv(others)).chunk(2, dim=1)
        query = query if self.scale == 1 else query * self.scale
        attention = torch.softmax(query @ key.transpose(-2, -1), dim=-1)
        attended = self.proj((attention @ value).transpose(1, 2).flatten(2))
        return attended, attention.mean(dim=1)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, L, heads * head_dim) to (B, heads, L, head_dim)."""
        batch, length, width = x.shape
        head_dim = self.q.out_features // self.num_heads
        return x.reshape(batch, length, width // head_dim, head_dim).transpose(1, 2)

    @torch.no_grad()
    def fold_scale(self) -> None:
        """Move the scale of the query into the weights of its projection."""
        for parameter in (self.q.weight, self.q.bias):
            if parameter is not None:
                parameter.mul_(self.scale)
        self.scale = 1.0


def joint_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T + mask) v for a scaled q (SAC-ViT Eq. 4)."""
    scores = q @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, dim=-1) @ v


def cluster_mask(length: int, clusters: Clusters) -> Tensor:
    """Make the constant added to the scores: 0 for pairs that attend, -inf for others.

    Returns:
        (L, L) for `joint`. For `mean` (L+1, L): the class query comes twice, first in the target
        cluster, then in the non-target cluster.
    """
    in_target = torch.zeros(length, dtype=torch.bool)
    in_target[: 1 + clusters.num_targets] = True
    in_other = ~in_target
    in_other[0] = True
    allowed = torch.where(in_target[:, None], in_target, in_other)
    if clusters.cls_update == "mean":
        allowed = torch.cat([in_target[None], in_other[None], allowed[1:]])
    else:
        allowed[0] = True
    return torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, clusters: Clusters) -> Tensor:
    mask = cluster_mask(q.shape[2], clusters).to(q)
    if clusters.cls_update == "joint":
        return joint_attention(q, k, v, mask)
    twice = joint_attention(torch.cat([q[:, :, :1], q], dim=2), k, v, mask)
    return torch.cat([twice[:, :, :2].mean(dim=2, keepdim=True), twice[:, :, 2:]], dim=2)


def _split_attention(q: Tensor, k: Tensor, v: Tensor, clusters: Clusters) -> Tensor:
    border = 1 + clusters.num_targets
    target_k, target_v = k[:, :, :border], v[:, :, :border]
    other_k = torch.cat([k[:, :, :1], k[:, :, border:]], dim=2)
    other_v = torch.cat([v[:, :, :1], v[:, :, border:]], dim=2)
    if clusters.cls_update == "joint":
        class_token = joint_attention(q[:, :, :1], k, v)
        targets = joint_attention(q[:, :, 1:border], target_k, target_v)
        others = joint_attention(q[:, :, border:], other_k, other_v)
        return torch.cat([class_token, targets, others], dim=2)
    other_q = torch.cat([q[:, :, :1], q[:, :, border:]], dim=2)
    targets = joint_attention(q[:, :, :border], target_k, target_v)
    others = joint_attention(other_q, other_k, other_v)
    class_token = (targets[:, :, :1] + others[:, :, :1]) / 2
    return torch.cat([class_token, targets[:, :, 1:], others[:, :, 1:]], dim=2)
