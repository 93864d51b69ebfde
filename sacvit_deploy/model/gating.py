"""Gates that choose which tokens a block updates, and blocks that update only those.

Liu et al., "Revisiting Token Pruning for Object Detection and Instance Segmentation" (SViT, WACV
2024), eq. 1. A token that is not kept stays as it is, and later gates can choose it again. Nothing
here knows of a class token or of a grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sacvit_deploy.model.ranking import ranking_key
from sacvit_deploy.model.vit import Block, Mlp

CERTAIN = 3e4
"""Added to the margin of a token that is always kept: above every margin, and finite in FP16."""

_INIT_STD = 0.02  # DeiT's
_FIRST_MARGIN = 1.0  # sampled, 73 % are kept


class Gate(nn.Module):
    """Scores every token twice, for keeping it and against: LayerNorm, D to D/4, GELU, 2."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, width // 4, outputs=2)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise as DeiT, but so that every token is kept at first, and most when sampled."""
        for layer in (self.mlp.fc1, self.mlp.fc2):
            nn.init.trunc_normal_(layer.weight, std=_INIT_STD, generator=generator)
            nn.init.zeros_(layer.bias)
        self.mlp.fc2.bias[0] = _FIRST_MARGIN

    def forward(self, x: Tensor) -> Tensor:
        """Score for minus score against, (B, L, D) to (B, L): above 0 the token is kept."""
        scores: Tensor = self.mlp(self.norm(x))
        return scores[..., 0] - scores[..., 1]


class Chosen(NamedTuple):
    """Tokens that a block computes.

    Attributes:
        tokens: (B, K, D).
        kept: Which of them the gate keeps, (B, K); None for all.
        rows: Their rows in a sequence (B*L, D), (B*K,); None for the whole sequence.
    """

    tokens: Tensor
    kept: Tensor | None
    rows: Tensor | None

    @property
    def mask(self) -> Tensor | None:
        """Added to the scores of attention, (B, 1, 1, K): tokens that are not kept are no keys."""
        if self.kept is None:
            return None
        # Finite: where nothing is kept, the softmax is thrown away, but must not be NaN.
        return torch.where(self.kept, 0.0, -CERTAIN).to(self.tokens.dtype)[:, None, None]


def choose_all(x: Tensor, margin: Tensor) -> Chosen:
    """The whole sequence (B, L, D) with its margins (B, L): the reference, and the most work."""
    return Chosen(x, margin > 0, None)


def choose_exact(x: Tensor, margin: Tensor) -> Chosen:
    """The kept tokens of one picture, (1, L, D) with margins (1, L): their number is data."""
    rows = torch.nonzero(margin[0] > 0)[:, 0]
    return Chosen(x[0].index_select(0, rows)[None], None, rows)


def choose_most_certain(x: Tensor, margin: Tensor, count: int) -> Chosen:
    """The `count` tokens with the largest margins, most certain first; each shape is fixed.

    Of equal margins the lower index comes first; see `ranking_key`.
    """
    batch, length, width = x.shape
    index = torch.topk(ranking_key(margin), count, dim=1).indices
    starts = length * torch.arange(batch, device=x.device)
    rows = (index + starts[:, None]).flatten()
    tokens = x.flatten(0, 1).index_select(0, rows).view(batch, count, width)
    largest = margin.flatten().index_select(0, rows).view(batch, count)
    return Chosen(tokens, largest > 0, rows)


def update_tokens(block: Block, x: Tensor, chosen: Chosen) -> Tensor:
    """Update the kept tokens of (B, L, D) among each other; the others stay (eq. 1)."""
    updated: Tensor = block(chosen.tokens, mask=chosen.mask)
    if chosen.kept is not None:
        updated = torch.where(chosen.kept[..., None], updated, chosen.tokens)
    if chosen.rows is None:
        return updated
    sequence = x.flatten(0, 1).index_put((chosen.rows,), updated.flatten(0, 1))
    return sequence.view(x.shape)


def update_sampled(block: Block, x: Tensor, kept: Tensor) -> Tensor:
    """The same on the whole sequence, with gradients for the decisions (B, L) of `sample_kept`."""
    updated: Tensor = block(x, mask=Chosen(x, kept > 0.5, None).mask)
    return x + kept[..., None] * (updated - x)


def sample_kept(margin: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw the decisions of a gate in training: hard Gumbel softmax, straight through.

    The difference of two Gumbel variables has a logistic distribution, so that one draw per token
    is enough.

    Args:
        margin: (B, L).
        temperature: tau of the soft decision whose gradient is used.

    Returns:
        0 or 1, (B, L), with the gradient of the soft decision.
    """
    # In single precision at least: bfloat16 has a few hundred numbers to draw from.
    wide = margin.to(torch.promote_types(margin.dtype, torch.float32))
    uniform = torch.rand_like(wide).clamp_(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((wide + torch.logit(uniform)) / temperature)
    return (soft > 0.5).to(soft) + (soft - soft.detach())
