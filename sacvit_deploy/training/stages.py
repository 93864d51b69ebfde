"""One forward pass of the recipe, the same for two-stage and dense networks."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from sacvit_deploy.model.two_stage import TwoStageViT, select_tokens
from sacvit_deploy.model.vit import VisionTransformer


class Answers(NamedTuple):
    """Logits of both stages, (B, C); a dense network has only the last."""

    answer: Tensor
    early_exit: Tensor | None


class StagedForward(nn.Module):
    """A network whose `forward` is the recipe's pass, as DistributedDataParallel needs it."""

    def __init__(self, model: TwoStageViT | VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, all_tokens: bool) -> Answers:
        """Every picture goes through both stages; eta plays no part.

        Args:
            image: Normalised, (B, 3, H, W).
            all_tokens: The first phase: stage 2 takes all fine tokens and attends jointly.
        """
        if isinstance(self.model, VisionTransformer):
            return Answers(self.model(image), None)
        coarse = self.model.early_exit(image)
        config = self.model.config
        count = config.num_coarse_tokens if all_tokens else None
        # Which tokens are chosen has no gradient; without detach the sort would keep the graph.
        selection = select_tokens(coarse.score.detach(), config, num_targets=count)
        return Answers(self.model.refine(image, coarse, selection), coarse.logits)
