"""Metrics of a run: accuracy, and the log as JSON lines and TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sacvit_deploy.decode import parse_json
from sacvit_deploy.errors import ConfigError, DataError, raised_as
from sacvit_deploy.families import family_named
from sacvit_deploy.files import open_regular, write_whole
from sacvit_deploy.libraries import require
from sacvit_deploy.training.data import ValidationPictures, read_batches
from sacvit_deploy.training.objective import StagedForward

if TYPE_CHECKING:
    from sacvit_deploy.training.run import Processes


_BATCH = 128


class MetricsLog:
    """A file of one JSON object per line.

    Args:
        path: The file. Lines after `from_step` are removed, because a resumed run repeats them.
        from_step: Step of the checkpoint that is resumed, or 0.
        tensorboard: Folder for TensorBoard's event files; None writes none.

    Raises:
        DataError: The file is there and cannot be read or written.
    """

    def __init__(self, path: Path, from_step: int, tensorboard: Path | None = None) -> None:
        self._path = path
        if path.exists():
            problem, fix = f"The metrics in {path} cannot be continued", "Move that file away."
            with raised_as(DataError, problem, fix):
                with open_regular(path) as stream:
                    lines = stream.read().decode(errors="replace").splitlines()
                write_whole(path, "".join(f"{x}\n" for x in lines if _is_before(x, from_step)))
        self._events: Any = None
        if tensorboard is not None:
            require("tensorboard", "Writing TensorBoard files")
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(tensorboard), purge_step=from_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of a step.

        Raises:
            DataError: The file cannot be written.
        """
        problem = f"The metrics cannot be written to {self._path}"
        fix = "Make space on that disk and start the same command again."
        with raised_as(DataError, problem, fix), self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event files."""
        if self._events is not None:
            self._events.close()


def _is_before(line: str, step: int) -> bool:
    """Whether a line is of a step up to this one; a kill may leave half a line, of no step."""
    with suppress(ConfigError, KeyError, TypeError):
        return bool(parse_json(line, "It")["step"] <= step)
    return False


@torch.no_grad()
def validate(
    forward: StagedForward, pictures: ValidationPictures, processes: Processes, workers: int
) -> dict[str, float]:
    """Measure the accuracy of a network in evaluation mode, on the process's device.

    Each process measures its share of the pictures. All get the same result.

    Returns:
        `top1` of the last stage; for two stages `top1_early_exit` of the first; with gates `kept`,
        the share of the tokens that they keep; each over all pictures, in [0, 1].

    Raises:
        DataError: A picture cannot be read.
    """
    share = range(processes.rank, len(pictures), processes.count)
    batches = [list(share[start : start + _BATCH]) for start in range(0, len(share), _BATCH)]
    # Gloo and NCCL both sum doubles, so that counts stay exact.
    sums = torch.zeros(3, dtype=torch.float64, device=processes.device)
    for image, label in read_batches(pictures, batches, workers):
        image, label = image.to(processes.device), label.to(processes.device)
        answers = forward(image, all_tokens=False)
        sums[0] += (answers.last.argmax(1) == label).sum()
        if answers.early_exit is not None:
            sums[1] += (answers.early_exit.argmax(1) == label).sum()
        if answers.kept is not None:
            sums[2] += answers.kept.mean() * len(label)
    last, first, kept = (processes.sum(sums) / len(pictures)).tolist()
    chosen = family_named(forward.model.config.family).chooses
    found = {"top1": last}
    if chosen == "target tokens":
        found["top1_early_exit"] = first
    elif chosen == "kept tokens":
        found["kept"] = kept
    return found
