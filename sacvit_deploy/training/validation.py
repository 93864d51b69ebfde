"""How often each stage alone is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, Subset

from sacvit_deploy.training.pictures import collate, read_batches
from sacvit_deploy.training.stages import StagedForward

if TYPE_CHECKING:
    from sacvit_deploy.training.distributed import Processes
    from sacvit_deploy.training.pictures import ValidationPictures

_BATCH = 128


@torch.no_grad()
def validate(
    forward: StagedForward, pictures: ValidationPictures, processes: Processes, workers: int
) -> dict[str, float]:
    """Share of right answers.

    Args:
        forward: The network, in evaluation mode, on the process's device.
        pictures: Every process measures its part of them.
        processes: All get the same result.
        workers: Processes that read.

    Raises:
        DataError: A picture cannot be read.

    Returns:
        `top1` of the last stage for every picture and, for two stages, `top1_early_exit` of the
        first stage for every picture; shares in [0, 1].
    """
    part = Subset(pictures, range(processes.rank, len(pictures), processes.count))
    right = torch.zeros(2, dtype=torch.float64, device=processes.device)
    two_stages = False
    loader = DataLoader(part, batch_size=_BATCH, num_workers=workers, collate_fn=collate)
    for image, label in read_batches(loader):
        image, label = image.to(processes.device), label.to(processes.device)
        answers = forward(image, all_tokens=False)
        right[0] += (answers.answer.argmax(1) == label).sum()
        if answers.early_exit is not None:
            two_stages = True
            right[1] += (answers.early_exit.argmax(1) == label).sum()
    # Gloo and NCCL both sum doubles; counts stay exact.
    last, first = (processes.sum(right) / len(pictures)).tolist()
    return {"top1": last, "top1_early_exit": first} if two_stages else {"top1": last}
