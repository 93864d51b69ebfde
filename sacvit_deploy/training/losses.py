"""What is minimised: SAC-ViT Eq. 12-14, and distillation from a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from sacvit_deploy.training.config import LossConfig


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
