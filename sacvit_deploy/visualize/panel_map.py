"""What the gates, or the semantic tokens, of a network of one graph look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families import family_named
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.progress import OnProgress, PictureCount, silent
from sacvit_deploy.runtime.pictures import PictureSource, name_of, read_picture
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.runtime.result import result_from_outcome
from sacvit_deploy.runtime.scheduler import Outcome
from sacvit_deploy.visualize.panel_sheet import Panel, PanelLook, PanelSheet
from sacvit_deploy.visualize.token_map import seen_part

_SEMANTIC = (
    "What each semantic token takes of the picture",
    "Light: the image tokens that a semantic token takes most of, in the last block that sees "
    "both, mean over heads; each panel on its own scale.",
)
_GATES = (
    "Which tokens each gate keeps",
    "Dark: a token that the block of the gate leaves as it is. The counts include the class token.",
)


def panel_map(
    pipeline: Pipeline, sources: Sequence[PictureSource], on_progress: OnProgress = silent
) -> PanelSheet:
    """Draw what the parts of a network see of some pictures.

    Args:
        pipeline: Runs a network of one graph, with semantic tokens or gates.
        sources: One or more pictures.
        on_progress: Called after each with the share of the pictures that is done.

    Raises:
        ConfigError: The network has nothing to show, or there is no picture.
        ImageError: A picture cannot be read.
        EngineError: The backend failed.
    """
    if not sources:
        raise ConfigError("There is no picture to show.", "Give at least one.")
    config = pipeline.manifest.config
    height, width = config.image_size
    family = family_named(config.family)
    title, legend = _GATES if family.chooses else _SEMANTIC
    network = (
        f"{family.title}, {width} x {height} pixels; {pipeline.precision} in {pipeline.backend}. "
    )
    passing, looks = PictureCount(len(sources)), list[PanelLook]()
    for source in sources:
        looks.append(_look(pipeline, source))
        on_progress(passing.share(len(looks)), passing.in_words(len(looks)))
    return PanelSheet(tuple(looks), height / width, title, network + legend)


def _look(pipeline: Pipeline, source: PictureSource) -> PanelLook:
    (outcome,) = pipeline.outcomes(pipeline.preprocess(source)[None])
    return PanelLook(
        seen=seen_part(pipeline, read_picture(source)),
        result=result_from_outcome(outcome, pipeline.manifest.labels, name_of(source)),
        panels=_panels(outcome, pipeline.manifest.config),
    )


def _panels(outcome: Outcome, config: ModelConfig) -> tuple[Panel, ...]:
    if outcome.semantic_attention is not None:
        return tuple(_semantic_panels(outcome.semantic_attention, config.fine_grid))
    if outcome.kept_mask is not None:
        return tuple(_gate_panels(outcome.kept_mask, config))
    raise ConfigError(
        "This network has one stage: it looks at every token once, so that there are no tokens to "
        "show.",
        "Use a bundle of a two-stage network, STViT or SViT; sacvit-deploy run classifies with "
        "this one.",
    )


def _semantic_panels(attention: NDArray[Any], grid: tuple[int, int]) -> Iterator[Panel]:
    light = attention / attention.max(axis=1, keepdims=True)
    for number, each in enumerate(light.reshape(-1, *grid), 1):
        yield Panel(f"token {number}", each)


def _gate_panels(mask: NDArray[np.uint8], config: ModelConfig) -> Iterator[Panel]:
    rows, columns = config.fine_grid
    for block, kept in enumerate(mask, config.gating.first_block + 1):
        title = f"block {block}: {int(kept.sum())} of {len(kept)}"
        yield Panel(title, kept[-rows * columns :].reshape(rows, columns))
