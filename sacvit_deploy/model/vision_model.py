"""What every torch network of this package has."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from sacvit_deploy.families.config import ModelConfig


class Answers(NamedTuple):
    """What a network answers in training.

    Attributes:
        last: Logits of the last stage, or of the only one, (B, C).
        early_exit: Logits of the first stage, (B, C); None for a network of one stage.
        kept: Share of the batch's tokens that each gate kept, (gates,); None without gates.
    """

    last: Tensor
    early_exit: Tensor | None = None
    kept: Tensor | None = None


class VisionModel(nn.Module):
    """A network on pictures; `forward` takes normalised images (B, 3, H, W)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def answers(self, image: Tensor, *, all_tokens: bool = False) -> Answers:
        """Answer as the recipe needs it: every stage for every picture.

        Args:
            image: Normalised, (B, 3, H, W).
            all_tokens: Whether a second stage refines all tokens, as in the first phase of
                training.
        """
        del all_tokens  # of two-stage networks
        return Answers(self(image))

    def folded(self) -> VisionModel:
        """The same network as it is deployed: BatchNorm and constant factors are in the weights.

        Returns:
            A copy in evaluation mode.
        """
        model = copy.deepcopy(self).eval()
        model.fold()
        return model

    def fold(self) -> None:
        """Fold this network in place; see `folded`."""
        raise NotImplementedError

    def branch_ends(self) -> list[Sequence[nn.Module]]:
        """The last layer of each residual branch, by block, for stochastic depth."""
        raise NotImplementedError
