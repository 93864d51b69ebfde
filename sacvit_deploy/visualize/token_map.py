"""Target tokens, scores and answers of both stages for pictures, as a drawing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families import family_named
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.progress import OnProgress, PictureCount, silent
from sacvit_deploy.runtime.algorithm import window_tokens
from sacvit_deploy.runtime.pictures import PictureSource, name_of, read_picture
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.runtime.result import result_from_outcome
from sacvit_deploy.runtime.scheduler import Outcome
from sacvit_deploy.spec import check_eta
from sacvit_deploy.visualize.token_sheet import TokenLook, TokenSheet

_BATCH = 16
_SHOWN_SIDE = 400


def look(
    pipeline: Pipeline,
    sources: Sequence[PictureSource],
    eta: float | None = None,
    on_progress: OnProgress = silent,
) -> list[TokenLook]:
    """Classify pictures, and return the scores and the first stage's answer as well.

    Args:
        pipeline: Runs a network of two stages.
        sources: One or more pictures.
        eta: Exit threshold in [0, 1]; None takes the pipeline's.
        on_progress: Called after each batch.

    Raises:
        ConfigError: The network has one stage, `eta` is out of range, or there is no picture.
        ImageError: A picture cannot be read.
        EngineError: The backend failed.
    """
    if pipeline.manifest.config.two_stage is None:
        raise ConfigError(
            "This network has one stage: it looks at every token once, so that there are no "
            "target tokens to show.",
            "Use a bundle of a two-stage network; sacvit-deploy run classifies with this one.",
        )
    if not sources:
        raise ConfigError("There is no picture to show.", "Give at least one.")
    size = min(_BATCH, pipeline.largest_batch or _BATCH)
    passing, looks = PictureCount(len(sources)), list[TokenLook]()
    for start in range(0, len(sources), size):
        looks += _looks(pipeline, sources[start : start + size], eta)
        on_progress(passing.share(len(looks)), passing.in_words(len(looks)))
    return looks


def _looks(
    pipeline: Pipeline, sources: Sequence[PictureSource], eta: float | None
) -> Iterator[TokenLook]:
    pictures = [read_picture(source) for source in sources]
    images = np.stack([pipeline.preprocess(source) for source in sources])
    labels = pipeline.manifest.labels
    outcomes = pipeline.outcomes(images, eta, scores=True)
    for source, picture, outcome in zip(sources, pictures, outcomes, strict=True):
        yield TokenLook(
            seen=seen_part(pipeline, picture),
            result=result_from_outcome(outcome, labels, name_of(source)),
            early_label=labels[int(outcome.early_logits.argmax())],
            score=np.asarray(outcome.score),
            window=_window(outcome, pipeline.manifest.config),
        )


def seen_part(pipeline: Pipeline, picture: Image.Image) -> Image.Image:
    """The part of a picture that the network sees, at the size of a drawing."""
    height, width = pipeline.preprocess.spec.crop
    shown = (_SHOWN_SIDE, max(1, round(height * _SHOWN_SIDE / width)))
    box = pipeline.preprocess.crop_box(*picture.size)
    return picture.resize(shown, Image.Resampling.LANCZOS, box=box)


def _window(outcome: Outcome, config: ModelConfig) -> frozenset[int]:
    if config.stages.window is None or outcome.score is None or outcome.target_index is None:
        return frozenset()
    (inside,) = window_tokens(outcome.score[None], config)
    return frozenset(np.flatnonzero(inside).tolist())


def token_map(  # noqa: PLR0913  all but the first two have a good default
    pipeline: Pipeline,
    images: PictureSource | list[Any] | tuple[Any, ...],
    *,
    eta: float | None = None,
    scores: bool = True,
    columns: int | None = None,
    note: str = "",
    on_progress: OnProgress = silent,
) -> TokenSheet:
    """Draw which tokens of pictures a two-stage network looks at again, as Fig. 5 of SAC-ViT does.

    Args:
        pipeline: From `sacvit_deploy.load`.
        images: One picture as a pipeline takes it, or a list or tuple of them.
        eta: Exit threshold in [0, 1]; None takes the pipeline's. With 1 no picture exits early.
        scores: Whether to draw the class attention of every token.
        columns: Pictures in a row of the sheet; None takes two, or three without scores.
        note: Line under the title; by default the network and the precision.
        on_progress: Called after each batch with the share of the pictures that is done.

    Raises:
        ConfigError: The network has one stage, or a value is out of range.
        ImageError: A picture cannot be read.
        EngineError: The backend failed.
    """
    if columns is not None and columns < 1:
        raise ConfigError(f"{columns} columns were asked for.", "Ask for 1 or more.")
    sources = images if isinstance(images, (list, tuple)) else (images,)
    eta = pipeline.eta if eta is None else check_eta(eta)
    config = pipeline.manifest.config
    height, width = config.image_size
    usual = (
        f"{family_named(config.family).title}, {width} x {height} pixels, "
        f"{config.num_coarse_tokens} tokens of which {config.num_targets} can be looked at again; "
        f"{pipeline.precision} in {pipeline.backend}"
    )
    return TokenSheet(
        looks=tuple(look(pipeline, sources, eta, on_progress)),
        grid=config.coarse_grid,
        shape=height / width,
        eta=eta,
        note=note or usual,
        scores=scores,
        columns=columns or (2 if scores else 3),
    )
