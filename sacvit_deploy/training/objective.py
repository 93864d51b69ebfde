"""Stochastic depth (Huang et al. 2016) on a network that does not know about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sacvit_deploy.model.two_stage import TwoStageViT, select_tokens
from sacvit_deploy.model.vit import Backbone

if TYPE_CHECKING:
    from sacvit_deploy.training.config import LossConfig


def add_drop_path(model: Backbone, rate: float) -> None:
    """Drop residual branches of whole pictures while the model is in training mode.

    Args:
        model: Its blocks get hooks at the last layer of their two branches.
        rate: Probability in the last block; it grows linearly from 0 in the first.
    """
    blocks = model.encoder()
    for index, block in enumerate(blocks):
        probability = rate * index / max(1, len(blocks) - 1)
        if probability > 0:
            for last_layer in (block.attn.proj, block.mlp.fc2):
                last_layer.register_forward_hook(_dropper(probability))


def _dropper(probability: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def drop(module: nn.Module, inputs: tuple[Tensor, ...], branch: Tensor) -> Tensor:
        if not module.training:
            return branch
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        kept = torch.rand(shape, device=branch.device) >= probability
        return branch * kept.to(branch.dtype) / (1 - probability)

    return drop


class Answers(NamedTuple):
    """Logits of both stages, (B, C); a dense network has only the last."""

    answer: Tensor
    early_exit: Tensor | None


class StagedForward(nn.Module):
    """A network whose `forward` is the recipe's pass, as DistributedDataParallel needs it."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, all_tokens: bool) -> Answers:
        """Every picture goes through both stages; eta plays no part.

        Args:
            image: Normalised, (B, 3, H, W).
            all_tokens: The first phase: stage 2 takes all fine tokens and attends jointly.
        """
        if not isinstance(self.model, TwoStageViT):
            return Answers(self.model(image), None)
        coarse = self.model.early_exit(image)
        config = self.model.config
        count = config.num_coarse_tokens if all_tokens else None
        # Which tokens are chosen has no gradient; without detach the sort would keep the graph.
        selection = select_tokens(coarse.score.detach(), config, num_targets=count)
        return Answers(self.model.refine(image, coarse, selection), coarse.logits)


class Losses(NamedTuple):
    """The terms of one batch, scalars.

    Attributes:
        total: The weighted sum that is minimised.
        target: Cross entropy of the last stage with the target.
        early_exit: The first stage's term; 0 for a dense model.
        teacher: The distillation term; 0 without a teacher.
    """

    total: Tensor
    target: Tensor
    early_exit: Tensor
    teacher: Tensor


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Class indices (B,) to probabilities (B, C): 1 - s on the label, s spread over all classes."""
    hard = functional.one_hot(labels, num_classes).float()
    return hard * (1 - smoothing) + smoothing / num_classes


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of -sum(target log p), for (B, C) probabilities as target."""
    return -(target * torch.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p_teacher || p_student) of two (B, C) logits, mean over the batch, times T squared.

    No gradient flows into the teacher.
    """
    wanted = torch.log_softmax(teacher.detach().float() / temperature, dim=1)
    found = torch.log_softmax(student.float() / temperature, dim=1)
    kl = functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return kl * temperature**2


class RecipeLoss(nn.Module):
    """Loss = CE(p_sac, y) + KL(p_sac.detach() || p_ee), T = 1 (SAC-ViT, "Training").

    With a teacher, its share of the first term becomes KL(p_teacher || p_sac). A dense model has
    the first term only.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        answer: Tensor,
        early_exit: Tensor | None,
        target: Tensor,
        teacher: Tensor | None = None,
    ) -> Losses:
        """Terms of one batch.

        Args:
            answer: Logits of the last stage, (B, C).
            early_exit: Logits of the first stage, (B, C); None for a dense model.
            target: Probabilities, (B, C).
            teacher: Logits of the teacher, (B, C), if there is one.
        """
        config, zero = self.config, answer.new_zeros((), dtype=torch.float32)
        by_label, by_teacher, first = cross_entropy(answer, target), zero, zero
        total = by_label
        if teacher is not None:
            by_teacher = divergence(teacher, answer, config.teacher_temperature)
            share = config.teacher_weight
            total = (1 - share) * by_label + share * by_teacher
        if early_exit is not None:
            if config.early_exit == "kl":
                first = divergence(answer, early_exit)
            else:
                first = cross_entropy(early_exit, target)
            total = total + config.early_exit_weight * first
        return Losses(total, by_label, first, by_teacher)
