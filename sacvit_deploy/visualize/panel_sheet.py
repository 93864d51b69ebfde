"""The drawing of what parts of a network of one graph look at: one small panel for each part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from sacvit_deploy.runtime.result import Result
from sacvit_deploy.visualize.canvas import Canvas, Drawing, Ink, Point, Type, fitted, wrapped

_INK, _QUIET = (24, 24, 27), (82, 82, 91)
_TITLE, _BODY = Type(20, _INK), Type(13, _QUIET)
_HEADING, _SMALL = Type(14, _INK), Type(11, _QUIET)
_DARKEST = 0.85
_MARGIN, _GAP, _LINE = 20, 8, 22
_SEEN, _PANEL, _CAPTION = 200, 96, 17
_ACROSS = 8


@dataclass(frozen=True)
class Panel:
    """What one part of a network sees of a picture.

    Attributes:
        title: Name of the part.
        light: From 0, dark, to 1 for every token of the grid, (rows, columns).
    """

    title: str
    light: NDArray[Any]


@dataclass(frozen=True)
class PanelLook:
    """One picture.

    Attributes:
        seen: The crop that the network saw.
        result: The answer.
        panels: One for each part, at least one.
    """

    seen: Image.Image
    result: Result
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class PanelSheet(Drawing):
    """A row for each picture: the crop with its answer, and the crop as each part sees it.

    Attributes:
        looks: One for each picture.
        shape: Height over width of the network's input.
        title: First line.
        note: Lines under it.
    """

    looks: tuple[PanelLook, ...]
    shape: float
    title: str
    note: str

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in units."""
        rows = sum(self._height_of(look) for look in self.looks)
        return self._width + 2 * _MARGIN, self._header + rows

    def draw(self, canvas: Canvas) -> None:
        """Draw on a canvas of this size."""
        canvas.text((_MARGIN, _MARGIN - 4), fitted(self.title, _TITLE.size, self._width), _TITLE)
        top = _MARGIN + 26
        for line in wrapped(self.note, _BODY.size, self._width):
            canvas.text((_MARGIN, top), line, _BODY)
            top += _LINE
        top = self._header
        for look in self.looks:
            self._draw_look(canvas, (_MARGIN, top), look)
            top += self._height_of(look)

    @property
    def _across(self) -> int:
        return min(_ACROSS, max(len(look.panels) for look in self.looks))

    @property
    def _width(self) -> int:
        return _SEEN + self._across * (_PANEL + _GAP)

    @property
    def _header(self) -> int:
        return _MARGIN + 36 + _LINE * len(wrapped(self.note, _BODY.size, self._width))

    def _high(self, width: int) -> int:
        """Height of a picture of this width."""
        return max(1, round(width * self.shape))

    def _height_of(self, look: PanelLook) -> int:
        rows = -(-len(look.panels) // self._across)
        panels = rows * (self._high(_PANEL) + _CAPTION + _GAP)
        return _LINE + max(self._high(_SEEN), panels) + _MARGIN

    def _draw_look(self, canvas: Canvas, corner: Point, look: PanelLook) -> None:
        left, top = corner
        result = look.result
        name = PurePath(result.image).name if result.image else "picture without a name"
        answer = f"{name}: {result.label}, {result.probability:.1%}"
        canvas.text(corner, fitted(answer, _HEADING.size, self._width), _HEADING)
        top += _LINE
        canvas.picture((left, top, left + _SEEN, top + self._high(_SEEN)), look.seen)
        for number, panel in enumerate(look.panels):
            row, column = divmod(number, self._across)
            at = left + _SEEN + _GAP + column * (_PANEL + _GAP)
            self._draw_panel(
                canvas, (at, top + row * (self._high(_PANEL) + _CAPTION + _GAP)), look.seen, panel
            )

    def _draw_panel(self, canvas: Canvas, corner: Point, seen: Image.Image, panel: Panel) -> None:
        left, top = corner
        canvas.text(corner, fitted(panel.title, _SMALL.size, _PANEL), _SMALL)
        top += _CAPTION
        height = self._high(_PANEL)
        canvas.picture((left, top, left + _PANEL, top + height), seen)
        rows, columns = panel.light.shape
        for (row, column), light in zip(
            ((r, c) for r in range(rows) for c in range(columns)),
            panel.light.ravel().tolist(),
            strict=True,
        ):
            box = (
                left + _PANEL * column / columns,
                top + height * row / rows,
                left + _PANEL * (column + 1) / columns,
                top + height * (row + 1) / rows,
            )
            canvas.fill(box, Ink(_INK, _DARKEST * (1 - light)))
