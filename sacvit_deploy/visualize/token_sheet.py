"""The drawing of which tokens a network looked at again, after Fig. 5 of SAC-ViT."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from sacvit_deploy.runtime.result import Result
from sacvit_deploy.visualize.canvas import (
    Box,
    Canvas,
    Drawing,
    Ink,
    Pen,
    Point,
    Type,
    fitted,
    outline,
    text_width,
    viridis,
    wrapped,
)

_INK, _QUIET = (24, 24, 27), (82, 82, 91)
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_SHADE, _GRID, _SWATCH = Ink(_INK, 0.62), Ink(_WHITE, 0.5), Ink((170, 178, 189))
_DROPPED = Ink(_INK, 0.4)
_BORDER = Pen((245, 158, 11), 2.5)
_WINDOW = Pen((125, 211, 252), 2.5, dashed=True)
_SCORE_BORDERS = (Pen(_BLACK, 4.0), Pen(_WHITE, 2.0))
_TITLE, _BODY, _SMALL = Type(20, _INK), Type(13, _QUIET), Type(12, _QUIET)
_HEADING, _ANSWER = Type(14, _INK), Type(17, _INK)

_TILE, _GAP, _MARGIN = 200, 10, 20
_BAR_GAP, _BAR, _BAR_TEXT, _BAR_STEPS = 8, 12, 46, 50
_NAME, _TITLES, _CAPTION, _LINE = 24, 17, 70, 22
_GROUP_GAP = (36, 22)
_SWATCH_GAP, _ENTRY_GAP = 8, 28
# Width of the swatch, and its meaning.
_LEGEND = {
    "target": (16, "target token: looked at again in full resolution"),
    "other": (16, "other token: reused from the first stage"),
    "dropped": (16, "other token inside the window"),
    "window": (16, "window with the largest sum of scores"),
    "score": (
        60,
        "score: class attention of a token (Eq. 10), no unit, each picture on its own scale",
    ),
}


@dataclass(frozen=True)
class TokenLook:
    """One picture after both stages.

    Attributes:
        seen: The crop that the network saw; small pictures are enlarged smoothly.
        result: The answer.
        early_label: Best class after the first stage.
        score: Class attention of every coarse token (Eq. 10), (N,).
        window: Coarse tokens of the window that holds all targets (LF-ViT); empty for a picture
            that left early, and in families without windows.
    """

    seen: Image.Image
    result: Result
    early_label: str
    score: NDArray[Any]
    window: frozenset[int] = frozenset()


@dataclass(frozen=True)
class TokenSheet(Drawing):
    """One group of panels for each picture: the crop, its target tokens, its scores, the answers.

    Attributes:
        looks: One for each picture.
        grid: (rows, columns) of coarse tokens.
        shape: Height over width of the network's input.
        eta: Exit threshold that was applied.
        note: Line under the title.
        scores: Whether to draw the score of every token.
        columns: Groups in a row.
    """

    looks: tuple[TokenLook, ...]
    grid: tuple[int, int]
    shape: float
    eta: float
    note: str
    scores: bool = True
    columns: int = 2

    title = "Which tokens the network looked at again"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in units."""
        rows = -(-len(self.looks) // self._across)
        height = self._header + rows * self._group[1] + (rows - 1) * _GROUP_GAP[1]
        return self._width + 2 * _MARGIN, height + _MARGIN

    def draw(self, canvas: Canvas) -> None:
        """Draw on a canvas of this size."""
        self._draw_header(canvas)
        width, height = self._group
        for index, seen in enumerate(self.looks):
            row, column = divmod(index, self._across)
            left = _MARGIN + column * (width + _GROUP_GAP[0])
            top = self._header + row * (height + _GROUP_GAP[1])
            self._draw_group(canvas, (left, top), seen)

    @property
    def _panels(self) -> int:
        return 3 if self.scores else 2

    @property
    def _group(self) -> tuple[int, int]:
        """(width, height) of what belongs to one picture."""
        bar = _BAR_GAP + _BAR + _BAR_TEXT if self.scores else 0
        tile_height = max(1, round(_TILE * self.shape))
        width = self._panels * (_TILE + _GAP) - _GAP + bar
        return width, _NAME + _TITLES + tile_height + _CAPTION

    @property
    def _across(self) -> int:
        return min(self.columns, len(self.looks))

    @property
    def _width(self) -> int:
        """Distance between the margins."""
        return self._across * (self._group[0] + _GROUP_GAP[0]) - _GROUP_GAP[0]

    @property
    def _header(self) -> int:
        notes = wrapped(self.note, _BODY.size, self._width)
        return _MARGIN + 30 + (len(notes) + len(self._legend_lines())) * _LINE + 10

    @property
    def _legend(self) -> list[str]:
        has_window = any(seen.window for seen in self.looks)
        windows = ("dropped", "window") if has_window else ()
        return ["target", "other", *windows, *(("score",) if self.scores else ())]

    def _legend_lines(self) -> list[list[tuple[str, float]]]:
        """Entries of the legend and their left ends, as many to a line as have room."""
        lines: list[list[tuple[str, float]]] = [[]]
        left = 0.0
        for kind in self._legend:
            swatch, text = _LEGEND[kind]
            width = swatch + _SWATCH_GAP + text_width(text, _BODY.size)
            if lines[-1] and left + width > self._width:
                lines.append([])
                left = 0.0
            lines[-1].append((kind, _MARGIN + left))
            left += width + _ENTRY_GAP
        return lines

    def _draw_header(self, canvas: Canvas) -> None:
        title = fitted(self.title, _TITLE.size, self._width)
        canvas.text((_MARGIN, _MARGIN - 4), title, _TITLE)
        top = _MARGIN + 26
        for note in wrapped(self.note, _BODY.size, self._width):
            canvas.text((_MARGIN, top), note, _BODY)
            top += _LINE
        for line in self._legend_lines():
            for kind, left in line:
                swatch, text = _LEGEND[kind]
                canvas.text((left + swatch + _SWATCH_GAP, top), text, _BODY)
                _draw_swatch(canvas, kind, (left, top + 2, left + swatch, top + 15))
            top += _LINE

    def _draw_group(self, canvas: Canvas, corner: Point, seen: TokenLook) -> None:
        left, top = corner
        file = seen.result.image
        name = PurePath(file).name if file else "picture without a name"
        canvas.text(corner, fitted(name, _HEADING.size, self._group[0]), _HEADING)
        tokens = "tokens looked at again" if seen.result.target_tokens else "none looked at again"
        titles = ("picture as cropped", tokens, "score of each token")
        upper, lower = top + _NAME + _TITLES, top + self._group[1] - _CAPTION
        boxes = []
        for title in titles[: self._panels]:
            canvas.text((left, top + _NAME), title, _SMALL)
            boxes.append((left, upper, left + _TILE, lower))
            left += _TILE + _GAP
        canvas.picture(boxes[0], seen.seen)
        canvas.picture(boxes[1], seen.seen)
        self._draw_tokens(canvas, boxes[1], seen)
        if self.scores:
            self._draw_scores(canvas, boxes[2], seen)
        self._draw_caption(canvas, (corner[0], lower + 5), seen)

    def _draw_tokens(self, canvas: Canvas, box: Box, seen: TokenLook) -> None:
        targets = set(seen.result.target_tokens or ())
        for index in range(self.grid[0] * self.grid[1]):
            if targets and index not in targets:
                canvas.fill(self._cell(box, index), _DROPPED if index in seen.window else _SHADE)
        for column in range(1, self.grid[1]):
            x = self._cell(box, column)[0]
            canvas.fill((x - 0.25, box[1], x + 0.25, box[3]), _GRID)
        for row in range(1, self.grid[0]):
            y = self._cell(box, row * self.grid[1])[1]
            canvas.fill((box[0], y - 0.25, box[2], y + 0.25), _GRID)
        self._draw_border(canvas, box, targets, _BORDER)
        self._draw_border(canvas, box, seen.window, _WINDOW)

    def _draw_scores(self, canvas: Canvas, box: Box, seen: TokenLook) -> None:
        low, high = float(seen.score.min()), float(seen.score.max())
        span = high - low
        for index, score in enumerate(seen.score.tolist()):
            share = (score - low) / span if span else 0.5
            canvas.fill(self._cell(box, index), Ink(viridis(share)))
        for pen in _SCORE_BORDERS:
            self._draw_border(canvas, box, set(seen.result.target_tokens or ()), pen)
        left = box[2] + _BAR_GAP
        _draw_scale(canvas, (left, box[1], left + _BAR, box[3]))
        for share in (1.0, 0.5, 0.0):
            y = box[1] + (1 - share) * (box[3] - box[1] - _SMALL.size - 2)
            canvas.text((left + _BAR + 4, y), f"{low + share * span:#.2g}", _SMALL)

    def _draw_caption(self, canvas: Canvas, corner: Point, seen: TokenLook) -> None:
        left, top = corner
        result, width = seen.result, self._group[0]
        answer = f"{result.label}  {result.probability:.1%}"
        canvas.text(corner, fitted(answer, _ANSWER.size, width), _ANSWER)
        confidence = result.early_exit_probability or 0.0
        early = f"early exit: {seen.early_label}, {confidence:.1%} sure (threshold {self.eta:.1%})"
        late = "left at the early exit; the second stage did not run"
        if result.target_tokens is not None:
            late = (
                f"second stage: {result.label}, {result.probability:.1%} sure, looked again at "
                f"{len(result.target_tokens)} of {self.grid[0] * self.grid[1]} tokens"
            )
        canvas.text((left, top + 26), fitted(early, _BODY.size, width), _BODY)
        canvas.text((left, top + 44), fitted(late, _BODY.size, width), _BODY)

    def _cell(self, box: Box, index: int) -> Box:
        row, column = divmod(index, self.grid[1])
        xs = [box[0] + (box[2] - box[0]) * i / self.grid[1] for i in (column, column + 1)]
        ys = [box[1] + (box[3] - box[1]) * i / self.grid[0] for i in (row, row + 1)]
        return xs[0], ys[0], xs[1], ys[1]

    def _draw_border(self, canvas: Canvas, box: Box, targets: Set[int], pen: Pen) -> None:
        """Draw the sides of the targets beyond which there is no target."""
        cells = {divmod(index, self.grid[1]): self._cell(box, index) for index in targets}
        for (row, column), (left, top, right, bottom) in cells.items():
            sides = {
                (row - 1, column): ((left, top), (right, top)),
                (row + 1, column): ((left, bottom), (right, bottom)),
                (row, column - 1): ((left, top), (left, bottom)),
                (row, column + 1): ((right, top), (right, bottom)),
            }
            for beside, side in sides.items():
                if beside not in cells:
                    canvas.line(side, pen)


def _draw_swatch(canvas: Canvas, kind: str, box: Box) -> None:
    if kind == "score":
        _draw_scale(canvas, box)
        return
    canvas.fill(box, _SWATCH)
    if kind in ("other", "dropped"):
        canvas.fill(box, _SHADE if kind == "other" else _DROPPED)
    else:
        canvas.line(outline(box), _BORDER if kind == "target" else _WINDOW)


def _draw_scale(canvas: Canvas, box: Box) -> None:
    """Draw all colours along the longer side, the highest on the right or at the top."""
    left, top, right, bottom = box
    upright = bottom - top > right - left
    length = bottom - top if upright else right - left
    for step in range(_BAR_STEPS):
        begin = length * step / _BAR_STEPS
        # To the end each time: between neighbours that only touch, a hairline would show.
        rest = (left, top, right, bottom - begin) if upright else (left + begin, top, right, bottom)
        canvas.fill(rest, Ink(viridis(step / (_BAR_STEPS - 1))))
