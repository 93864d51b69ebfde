"""One sheet for several pictures: what was seen, what was looked at again, what came out.

After Fig. 5 of SAC-ViT: non-target tokens are shaded, target tokens are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from sacvit_deploy.runtime.pictures import read_picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sacvit_deploy.runtime.pictures import PictureSource
    from sacvit_deploy.runtime.preprocess import Preprocessor
    from sacvit_deploy.runtime.result import Result

_SIDE = 320
_MARGIN = 16
_HEADER = 56
_CAPTION = 74
_COLUMNS = 4
_PAPER, _INK, _QUIET = (255, 255, 255), (24, 24, 27), (95, 95, 105)
_SHADE = (24, 24, 27, 150)
_GRID = (255, 255, 255, 110)
_TARGET = (245, 158, 11, 255)
_STAGE_NAMES = {
    "early_exit": "left at the early exit",
    "refine": "looked again (refined)",
    "single": "one stage",
}


@dataclass(frozen=True)
class Panel:
    """One picture of the sheet.

    Attributes:
        source: The picture, anything `read_picture` takes.
        result: What the network said about it.
    """

    source: PictureSource
    result: Result


def token_sheet(
    panels: Sequence[Panel],
    preprocessor: Preprocessor,
    coarse_grid: tuple[int, int],
    note: str = "",
) -> Image.Image:
    """Draw pictures side by side, each with its target tokens, stage and probability.

    Args:
        panels: One or more.
        preprocessor: Says which part of a picture the network saw.
        coarse_grid: (rows, columns) of the first stage.
        note: One line under the title, for example that the weights are random.

    Returns:
        An RGB image, four panels in a row at most.
    """
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    height_to_width = preprocessor.spec.crop[0] / preprocessor.spec.crop[1]
    cell = (_SIDE, round(_SIDE * height_to_width))
    step = (cell[0] + _MARGIN, cell[1] + _CAPTION)
    size = (columns * step[0] + _MARGIN, _HEADER + rows * step[1] + _MARGIN)
    sheet = Image.new("RGB", size, _PAPER)
    _write_header(ImageDraw.Draw(sheet), note)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        corner = (_MARGIN + column * step[0], _HEADER + row * step[1])
        sheet.paste(_seen(panel, preprocessor, cell, coarse_grid), corner)
        _write_caption(ImageDraw.Draw(sheet), (corner[0], corner[1] + cell[1] + 6), panel.result)
    return sheet


def _seen(
    panel: Panel, preprocessor: Preprocessor, cell: tuple[int, int], grid: tuple[int, int]
) -> Image.Image:
    """The part of the picture that the network saw, non-targets shaded."""
    picture = read_picture(panel.source)
    box = preprocessor.crop_box(*picture.size)
    seen = picture.resize(cell, Image.Resampling.LANCZOS, box=box).convert("RGBA")
    targets = panel.result.target_tokens
    if targets is not None:
        seen.alpha_composite(_overlay(cell, grid, set(targets)))
    return seen.convert("RGB")


def _overlay(cell: tuple[int, int], grid: tuple[int, int], targets: set[int]) -> Image.Image:
    layer = Image.new("RGBA", cell, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    rows, columns = grid
    # Outlines last, so that no neighbour's shade lies on them.
    for index in sorted(range(rows * columns), key=lambda index: index in targets):
        row, column = divmod(index, columns)
        box = (
            column * cell[0] // columns,
            row * cell[1] // rows,
            (column + 1) * cell[0] // columns - 1,
            (row + 1) * cell[1] // rows - 1,
        )
        if index in targets:
            draw.rectangle(box, outline=_TARGET, width=2)
        else:
            draw.rectangle(box, fill=_SHADE, outline=_GRID)
    return layer


def _write_header(draw: ImageDraw.ImageDraw, note: str) -> None:
    title = "Target tokens are outlined; shaded tokens were reused from the first look."
    draw.text((_MARGIN, 10), title, fill=_INK, font=_font(15))
    draw.text((_MARGIN, 32), note, fill=_QUIET, font=_font(13))


def _write_caption(draw: ImageDraw.ImageDraw, corner: tuple[int, int], result: Result) -> None:
    left, top = corner
    first = f"{result.label}  {result.probability:.1%}"
    draw.text((left, top), _fit(draw, first, _font(17)), fill=_INK, font=_font(17))
    draw.text((left, top + 24), _STAGE_NAMES[result.stage], fill=_QUIET, font=_font(13))
    if result.early_exit_probability is not None:
        early = f"probability at the early exit: {result.early_exit_probability:.1%}"
        draw.text((left, top + 42), early, fill=_QUIET, font=_font(13))


def _fit(draw: ImageDraw.ImageDraw, text: str, font: _Font) -> str:
    """The text, shortened to the width of a panel."""
    if draw.textlength(text, font=font) <= _SIDE:
        return text
    while draw.textlength(text + "…", font=font) > _SIDE:
        text = text[:-1]
    return text + "…"


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _font(size: int) -> _Font:
    return ImageFont.load_default(size)
