"""The objective: both stages of a network, their loss, and stochastic depth."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sacvit_deploy.families.svit import published_shares
from sacvit_deploy.model.vision_model import Answers, VisionModel

if TYPE_CHECKING:
    from sacvit_deploy.training.config import LossConfig


class StagedForward(nn.Module):
    """A network whose `forward` runs both stages, as DistributedDataParallel needs it."""

    def __init__(self, model: VisionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, all_tokens: bool) -> Answers:
        """Run both stages for every normalised image (B, 3, H, W), without an exit threshold.

        With `all_tokens` the second one refines all tokens with joint attention, as in the first
        phase of training.
        """
        return self.model.answers(image, all_tokens=all_tokens)


class Losses(NamedTuple):
    """Terms of the loss of one batch, scalars.

    Attributes:
        total: Weighted sum that is minimised.
        target: Cross entropy of the last stage with the target.
        early_exit: Term of the first stage; 0 for a dense network.
        teacher: Distillation term; 0 without a teacher.
        kept: Distance of the share of kept tokens from the goal; 0 without gates.
    """

    total: Tensor
    target: Tensor
    early_exit: Tensor
    teacher: Tensor
    kept: Tensor


def recipe_loss(
    answers: Answers, target: Tensor, config: LossConfig, teacher: Tensor | None = None
) -> Losses:
    """Compute CE(p_sac, y) + KL(p_sac.detach() || p_ee), T = 1 (SAC-ViT, "Training").

    With a teacher, a share of the first term becomes KL(p_teacher || p_sac). A dense network has
    the first term only. One with gates has `kept_distance` too (SViT, eq. 2). The target holds
    probabilities (B, C), `teacher` logits (B, C).
    """
    last, early_exit, kept = answers
    zero = last.new_zeros((), dtype=torch.float32)
    by_label, by_teacher, first, distance = cross_entropy(last, target), zero, zero, zero
    total = by_label
    if teacher is not None:
        by_teacher = divergence(teacher, last, config.teacher_temperature)
        share = config.teacher_weight
        total = (1 - share) * by_label + share * by_teacher
    if early_exit is not None:
        if config.early_exit == "kl":
            first = divergence(last, early_exit)
        else:
            first = cross_entropy(early_exit, target)
        total = total + config.early_exit_weight * first
    if kept is not None:
        distance = kept_distance(kept, config.keep_share)
        total = total + config.kept_weight * distance
    return Losses(total, by_label, first, by_teacher, distance)


def kept_distance(kept: Tensor, share: float) -> Tensor:
    """Average (kept share - goal)^2 over the gates (SViT, eq. 2), of shares (gates,).

    The mean over the batch is compared, so that a picture may keep more than another. The goals
    are powers of `share`, by thirds of the gates.
    """
    goals = kept.new_tensor(published_shares(len(kept), share))
    return (kept - goals).square().mean().float()


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Turn class indices (B,) into probabilities (B, C): 1 - s + s/C for the label, else s/C."""
    hard = functional.one_hot(labels, num_classes).float()
    return hard * (1 - smoothing) + smoothing / num_classes


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Average -sum(target log p) over the batch, for target probabilities (B, C)."""
    return -(target * torch.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Average KL(p_teacher || p_student) of logits (B, C) over the batch, times T squared.

    No gradient flows into the teacher.
    """
    wanted = torch.log_softmax(teacher.detach().float() / temperature, dim=1)
    found = torch.log_softmax(student.float() / temperature, dim=1)
    kl = functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return kl * temperature**2


def add_drop_path(model: VisionModel, rate: float) -> None:
    """Add stochastic depth (Huang et al. 2016): residual branches drop per picture in training.

    The last layer of both branches gets a hook. The probability grows linearly from 0 in the first
    block to `rate` in the last.
    """
    blocks = model.branch_ends()
    for index, last_layers in enumerate(blocks):
        probability = rate * index / max(1, len(blocks) - 1)
        if probability > 0:
            for last_layer in last_layers:
                last_layer.register_forward_hook(partial(_drop, probability))


def _drop(probability: float, module: nn.Module, _inputs: object, branch: Tensor) -> Tensor:
    if not module.training:
        return branch
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    kept = torch.rand(shape, device=branch.device) >= probability
    return branch * kept.to(branch.dtype) / (1 - probability)
