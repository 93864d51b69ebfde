"""What a network looked at in pictures, and what each stage said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.files import check_output, write_output
from sacvit_deploy.runtime.pictures import read_picture
from sacvit_deploy.runtime.reader import name_of
from sacvit_deploy.runtime.result import result_from_outcome
from sacvit_deploy.spec import check_eta
from sacvit_deploy.visualize.canvas import PixelCanvas, VectorCanvas
from sacvit_deploy.visualize.token_sheet import PAPER, SheetText, TokenSheet

if TYPE_CHECKING:
    import os
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
    size = min(_BATCH, pipeline.largest_batch or _BATCH)
    starts = range(0, len(sources), size)
    return [seen for i in starts for seen in _looks(pipeline, sources[i : i + size], threshold)]


def _looks(pipeline: Pipeline, sources: Sequence[PictureSource], eta: float) -> Iterator[TokenLook]:
    pictures = [read_picture(source) for source in sources]
    images = np.stack([pipeline.preprocess(picture) for picture in pictures])
    labels = pipeline.manifest.labels
    outcomes = pipeline.outcomes(images, eta, scores=True)
    for source, picture, outcome in zip(sources, pictures, outcomes, strict=True):
        name = name_of(source)
        score: Any = outcome.score  # there are two stages, and scores were asked for
        yield TokenLook(
            name=name or "",
            seen=_seen(pipeline, picture),
            result=result_from_outcome(outcome, labels, name),
            early_label=labels[int(outcome.early_logits.argmax())],
            score=score,
        )


def _seen(pipeline: Pipeline, picture: Image.Image) -> Image.Image:
    """The crop in the shape of the input, small pictures enlarged smoothly."""
    height, width = pipeline.preprocess.spec.crop
    scale = _SHOWN_SIDE / width
    size = (_SHOWN_SIDE, max(1, round(height * scale)))
    box = pipeline.preprocess.crop_box(*picture.size)
    return picture.resize(size, Image.Resampling.LANCZOS, box=box)


TITLE = "Which tokens the network looked at again"

_FAMILIES = {"sac_vit": "SAC-ViT", "cf_vit": "CF-ViT"}
_SUFFIXES = (".png", ".svg")
_FILE_SCALE = 2


@dataclass(frozen=True)
class TokenMap:
    """A sheet of pictures with their tokens; a notebook shows it.

    Attributes:
        sheet: The drawing, and in `sheet.looks` what it shows.
    """

    sheet: TokenSheet

    @property
    def looks(self) -> tuple[TokenLook, ...]:
        """For each picture the results of both stages and the scores."""
        return self.sheet.looks

    def image(self, scale: int = _FILE_SCALE) -> Image.Image:
        """The sheet in RGB pixels; a panel is 200 times `scale` pixels wide."""
        return self._pixels(scale).image

    def svg(self) -> str:
        """The sheet as a document of vectors and text, the pictures embedded."""
        canvas = VectorCanvas(self.sheet.size, PAPER, self.sheet.text.title)
        self.sheet.draw(canvas)
        return canvas.svg()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.png` or `.svg` file, whole or not at all.

        Raises:
            ConfigError: The name ends otherwise, or the file cannot be written.
        """
        file = check_sheet_file(path)
        is_vector = file.suffix.lower() == ".svg"
        write_output(file, self.svg() if is_vector else self._pixels(_FILE_SCALE).png())

    def _repr_png_(self) -> bytes:
        return self._pixels(1).png()

    def _repr_svg_(self) -> str:
        return self.svg()

    def _pixels(self, scale: int) -> PixelCanvas:
        canvas = PixelCanvas(self.sheet.size, PAPER, scale)
        self.sheet.draw(canvas)
        return canvas


def token_map(  # noqa: PLR0913  all but the first two have a good default
    pipeline: Pipeline,
    images: PictureSource | list[Any] | tuple[Any, ...],
    *,
    eta: float | None = None,
    scores: bool = True,
    columns: int | None = None,
    note: str = "",
) -> TokenMap:
    """Show which tokens of pictures a two-stage network looks at again, as Fig. 5 of SAC-ViT does.

    Args:
        pipeline: From `sacvit_deploy.load`.
        images: One picture as a pipeline takes it, or a list or tuple of them.
        eta: Exit threshold in [0, 1]; None takes the pipeline's. With 1 no picture leaves early.
        scores: Whether to draw the class attention of every token.
        columns: Pictures in a row of the sheet; None takes two, or three without scores.
        note: A line under the title; by default the network and the threshold.

    Raises:
        ConfigError: The network has one stage, or a value is out of range.
        ImageError: A picture cannot be read.
        EngineError: The runtime failed.
    """
    if columns is not None and columns < 1:
        raise ConfigError(f"{columns} columns were asked for.", "Ask for 1 or more.")
    sources = images if isinstance(images, (list, tuple)) else (images,)
    threshold = pipeline.eta if eta is None else check_eta(eta)
    looks = look(pipeline, sources, threshold)
    config = pipeline.manifest.config
    height, width = config.image_size
    usual = (
        f"{_FAMILIES.get(config.family, config.family)}, {width} x {height} pixels, "
        f"{config.num_coarse_tokens} tokens of which {config.num_targets} can be looked at again; "
        f"{pipeline.precision} in {pipeline.backend}"
    )
    return TokenMap(
        TokenSheet(
            looks=tuple(looks),
            grid=config.coarse_grid,
            shape=height / width,
            eta=threshold,
            text=SheetText(TITLE, note or usual),
            scores=scores,
            columns=columns or (2 if scores else 3),
        )
    )


def check_sheet_file(path: str | os.PathLike[str]) -> Path:
    """The file a sheet can be written to, before the work.

    Raises:
        ConfigError: The name does not end in .png or .svg, or the file cannot be written.
    """
    file = Path(path)
    if file.suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"{file} does not say which format to write.", "Let its name end in .png or .svg."
        )
    check_output(file)
    return file
