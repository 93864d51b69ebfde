"""What every torch network of this package has."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from sacvit_deploy.families.config import ModelConfig


class VisionModel(nn.Module):
    """A network on pictures; `forward` takes normalised images (B, 3, H, W)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

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
