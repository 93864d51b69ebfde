"""What a network looked at in pictures, and what each stage said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sacvit_deploy.bundle import check_eta
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.runtime.pictures import read_picture
from sacvit_deploy.runtime.reader import name_of
from sacvit_deploy.runtime.result import result_from_outcome
from sacvit_deploy.spec import SCORE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.runtime.pictures import PictureSource
    from sacvit_deploy.runtime.pipeline import Pipeline
    from sacvit_deploy.runtime.result import Result

_BATCH = 16
_SHOWN_SIDE = 400


@dataclass(frozen=True)
class TokenLook:
    """One picture through both stages.

    Attributes:
        name: Of the picture; empty for one without.
        seen: The part of it that the network saw, large enough to be shown.
        result: The answer.
        early_label: Best class after the first stage.
        score: Class attention of every coarse token (Eq. 10), (N,).
    """

    name: str
    seen: Image.Image
    result: Result
    early_label: str
    score: NDArray[Any]


def look(
    pipeline: Pipeline, sources: Sequence[PictureSource], eta: float | None = None
) -> list[TokenLook]:
    """Classify pictures and keep what else the stages computed on the way; nothing runs twice.

    Args:
        pipeline: Of a network of two stages.
        sources: One or more pictures.
        eta: Exit threshold in [0, 1]; None takes the pipeline's.

    Raises:
        ConfigError: The network has one stage, `eta` is out of range, or there is no picture.
        ImageError: A picture cannot be read.
        EngineError: The runtime failed.
    """
    config = pipeline.manifest.config
    if config.two_stage is None:
        raise ConfigError(
            "This network has one stage: it looks at every token once, so that there are no "
            "target tokens to show.",
            "Use a bundle of a sac_ or cf_ preset; sacvit-deploy run classifies with this one.",
        )
    if not sources:
        raise ConfigError("There is no picture to show.", "Give at least one.")
    threshold = pipeline.eta if eta is None else check_eta(eta)
    size = min(_BATCH, pipeline.opened.largest_batch or _BATCH)
    starts = range(0, len(sources), size)
    return [seen for i in starts for seen in _looks(pipeline, sources[i : i + size], threshold)]


def _looks(pipeline: Pipeline, sources: Sequence[PictureSource], eta: float) -> Iterator[TokenLook]:
    pictures = [read_picture(source) for source in sources]
    images = np.stack([pipeline.preprocess(picture) for picture in pictures])
    scheduler, labels = pipeline.scheduler, pipeline.manifest.labels
    # The two halves of Scheduler.run: the score is handed from the first to the second.
    first = scheduler.first_pass(images, eta)
    outcomes = list(first.outcomes)
    if first.survivors.size:
        waiting = [outcomes[row] for row in first.survivors]
        refined = scheduler.refine(waiting, first.hand_off, first.survivors)
        for row, outcome in zip(first.survivors.tolist(), refined, strict=True):
            outcomes[row] = outcome
    for row, source in enumerate(sources):
        name = name_of(source)
        yield TokenLook(
            name=name or "",
            seen=_seen(pipeline, pictures[row]),
            result=result_from_outcome(outcomes[row], labels, name),
            early_label=labels[int(first.outcomes[row].logits.argmax())],
            score=first.hand_off[SCORE][row],
        )


def _seen(pipeline: Pipeline, picture: Image.Image) -> Image.Image:
    """The crop in the shape of the input, small pictures enlarged smoothly."""
    height, width = pipeline.preprocess.spec.crop
    scale = _SHOWN_SIDE / width
    size = (_SHOWN_SIDE, max(1, round(height * scale)))
    box = pipeline.preprocess.crop_box(*picture.size)
    return picture.resize(size, Image.Resampling.LANCZOS, box=box)
