"""One sheet for several pictures: what was seen, what was looked at again, what came out.

After Fig. 5 of SAC-ViT: non-target tokens are shaded, target tokens are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

from sacvit_deploy.visualize.canvas import Ink, Type, fitted, text_width, viridis, wrapped

if TYPE_CHECKING:
    from sacvit_deploy.visualize.canvas import Box, Canvas, Point
    from sacvit_deploy.visualize.token_map import TokenLook

PAPER = (255, 255, 255)
_INK, _QUIET = (24, 24, 27), (82, 82, 91)
_SHADE = Ink((24, 24, 27), 0.62)
_TARGET = (245, 158, 11)
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)

_TILE, _GAP, _MARGIN = 200, 10, 20
_BAR_GAP, _BAR, _BAR_TEXT = 8, 12, 46
_NAME, _TITLES, _CAPTION = 24, 17, 70
_GROUP_GAP = (36, 22)
_BAR_STEPS = 50
_TITLE, _BODY, _SMALL = Type(20, _INK), Type(13, _QUIET), Type(12, _QUIET)
_HEADING, _ANSWER = Type(14, _INK), Type(17, _INK)
_LINE = 22
_SWATCH, _SWATCH_GAP, _ENTRY_GAP = (170, 178, 189), 8, 28


@dataclass(frozen=True)
class LegendEntry:
    """A swatch and what it means.

    Attributes:
        kind: What the swatch shows.
        text: What it means.
    """

    kind: Literal["target", "other", "score"]
    text: str

    @property
    def width(self) -> float:
        """Of swatch and text."""
        return self._swatch + _SWATCH_GAP + text_width(self.text, _BODY.size)

    @property
    def _swatch(self) -> int:
        return 60 if self.kind == "score" else 16

    def draw(self, canvas: Canvas, corner: Point) -> None:
        """In one line that begins at a corner."""
        left, top = corner[0], corner[1] + 2
        box = (left, top, left + self._swatch, top + 13)
        canvas.text((box[2] + _SWATCH_GAP, corner[1]), self.text, _BODY)
        if self.kind == "score":
            _draw_scale(canvas, box)
            return
        canvas.fill(box, Ink(_SWATCH))
        if self.kind == "other":
            canvas.fill(box, _SHADE)
            return
        left, top, right, bottom = box
        corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
        canvas.line(corners, _TARGET, 2.5)


LEGEND = (
    LegendEntry("target", "target token: looked at again in full resolution"),
    LegendEntry("other", "other token: reused from the first stage"),
    LegendEntry(
        "score",
        "score: class attention of a token (Eq. 10), no unit, each picture on its own scale",
    ),
)


@dataclass(frozen=True)
class SheetText:
    """What is written over the pictures.

    Attributes:
        title: The first line.
        note: The second, for example which network and which threshold.
    """

    title: str
    note: str = ""


@dataclass(frozen=True)
class TokenSheet:
    """The drawing, ready for any canvas.

    Attributes:
        looks: One group each.
        grid: (rows, columns) of coarse tokens.
        shape: Height over width of what the network sees.
        eta: Exit threshold that was applied.
        text: What is written over the pictures.
        scores: Whether to draw the score of every token.
        columns: Groups in a row.
    """

    looks: tuple[TokenLook, ...]
    grid: tuple[int, int]
    shape: float
    eta: float
    text: SheetText
    scores: bool = True
    columns: int = 2

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in units."""
        rows = -(-len(self.looks) // self._across)
        height = self._header + rows * self._group[1] + (rows - 1) * _GROUP_GAP[1]
        return self._width + 2 * _MARGIN, height + _MARGIN

    def draw(self, canvas: Canvas) -> None:
        """Put everything on a canvas of this size."""
        self._draw_header(canvas)
        width, height = self._group
        for index, seen in enumerate(self.looks):
            row, column = divmod(index, self._across)
            left = _MARGIN + column * (width + _GROUP_GAP[0])
            top = self._header + row * (height + _GROUP_GAP[1])
            self._draw_group(canvas, (left, top), seen)

    @property
    def _tile(self) -> tuple[int, int]:
        return _TILE, max(1, round(_TILE * self.shape))

    @property
    def _group(self) -> tuple[int, int]:
        tiles = 3 if self.scores else 2
        bar = _BAR_GAP + _BAR + _BAR_TEXT if self.scores else 0
        width = tiles * _TILE + (tiles - 1) * _GAP + bar
        return width, _NAME + _TITLES + self._tile[1] + _CAPTION

    @property
    def _across(self) -> int:
        return min(self.columns, len(self.looks))

    @property
    def _width(self) -> int:
        """Between the margins."""
        return self._across * self._group[0] + (self._across - 1) * _GROUP_GAP[0]

    @property
    def _header(self) -> int:
        lines = len(self._note_lines()) + len(self._legend_lines())
        return _MARGIN + 30 + lines * _LINE + 10

    def _note_lines(self) -> list[str]:
        return wrapped(self.text.note, _BODY.size, self._width)

    def _legend_lines(self) -> list[list[LegendEntry]]:
        """As many entries to a line as it takes."""
        lines: list[list[LegendEntry]] = [[]]
        used = 0.0
        for entry in LEGEND if self.scores else LEGEND[:-1]:
            if lines[-1] and used + entry.width > self._width:
                lines.append([])
                used = 0.0
            lines[-1].append(entry)
            used += entry.width + _ENTRY_GAP
        return lines

    def _draw_header(self, canvas: Canvas) -> None:
        title = fitted(self.text.title, _TITLE.size, self._width)
        canvas.text((_MARGIN, _MARGIN - 4), title, _TITLE)
        top = _MARGIN + 26
        for note in self._note_lines():
            canvas.text((_MARGIN, top), note, _BODY)
            top += _LINE
        for line in self._legend_lines():
            left = float(_MARGIN)
            for entry in line:
                entry.draw(canvas, (left, top))
                left += entry.width + _ENTRY_GAP
            top += _LINE

    def _draw_group(self, canvas: Canvas, corner: Point, seen: TokenLook) -> None:
        left, top = corner
        width = self._group[0]
        name = PurePath(seen.name).name if seen.name else "picture without a name"
        canvas.text((left, top), fitted(name, _HEADING.size, width), _HEADING)
        tokens = "tokens looked at again" if seen.result.target_tokens else "none looked at again"
        titles = ("picture as cropped", tokens, "score of each token")
        below = top + _NAME + _TITLES
        boxes = []
        for index in range(3 if self.scores else 2):
            x = left + index * (_TILE + _GAP)
            canvas.text((x, top + _NAME), titles[index], _SMALL)
            boxes.append((x, below, x + _TILE, below + self._tile[1]))
        canvas.picture(boxes[0], seen.seen)
        canvas.picture(boxes[1], seen.seen)
        self._draw_tokens(canvas, boxes[1], seen)
        if self.scores:
            self._draw_scores(canvas, boxes[2], seen)
        self._draw_caption(canvas, (left, below + self._tile[1] + 5), seen)

    def _draw_tokens(self, canvas: Canvas, box: Box, seen: TokenLook) -> None:
        targets = set(seen.result.target_tokens or ())
        if targets:
            for index in range(self.grid[0] * self.grid[1]):
                if index not in targets:
                    canvas.fill(self._cell(box, index), _SHADE)
        self._draw_grid(canvas, box)
        for edge in self._edges(box, targets):
            canvas.line(edge, _TARGET, 2.5)

    def _draw_scores(self, canvas: Canvas, box: Box, seen: TokenLook) -> None:
        low, high = float(seen.score.min()), float(seen.score.max())
        span = high - low
        for index, score in enumerate(seen.score.tolist()):
            share = (score - low) / span if span else 0.5
            canvas.fill(self._cell(box, index), Ink(viridis(share)))
        edges = self._edges(box, set(seen.result.target_tokens or ()))
        for colour, width in ((_BLACK, 4.0), (_WHITE, 2.0)):
            for edge in edges:
                canvas.line(edge, colour, width)
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
        sure = result.early_exit_probability or 0.0
        early = f"early exit: {seen.early_label}, {sure:.1%} sure (threshold {self.eta:.1%})"
        if result.target_tokens is None:
            late = "left at the early exit; the second stage did not run"
        else:
            tokens = self.grid[0] * self.grid[1]
            late = (
                f"second stage: {result.label}, {result.probability:.1%} sure, looked again at "
                f"{len(result.target_tokens)} of {tokens} tokens"
            )
        canvas.text((left, top + 26), fitted(early, _BODY.size, width), _BODY)
        canvas.text((left, top + 44), fitted(late, _BODY.size, width), _BODY)

    def _cell(self, box: Box, index: int) -> Box:
        row, column = divmod(index, self.grid[1])
        xs = [box[0] + (box[2] - box[0]) * i / self.grid[1] for i in (column, column + 1)]
        ys = [box[1] + (box[3] - box[1]) * i / self.grid[0] for i in (row, row + 1)]
        return xs[0], ys[0], xs[1], ys[1]

    def _draw_grid(self, canvas: Canvas, box: Box) -> None:
        for column in range(1, self.grid[1]):
            x = self._cell(box, column)[0]
            canvas.fill((x - 0.25, box[1], x + 0.25, box[3]), Ink(_WHITE, 0.5))
        for row in range(1, self.grid[0]):
            y = self._cell(box, row * self.grid[1])[1]
            canvas.fill((box[0], y - 0.25, box[2], y + 0.25), Ink(_WHITE, 0.5))

    def _edges(self, box: Box, targets: set[int]) -> list[tuple[Point, Point]]:
        """The border around the targets: sides of cells beyond which there is none."""
        rows, columns = self.grid
        edges: list[tuple[Point, Point]] = []
        for index in sorted(targets):
            row, column = divmod(index, columns)
            left, top, right, bottom = self._cell(box, index)
            sides = (
                (row == 0 or index - columns not in targets, ((left, top), (right, top))),
                (
                    row == rows - 1 or index + columns not in targets,
                    ((left, bottom), (right, bottom)),
                ),
                (column == 0 or index - 1 not in targets, ((left, top), (left, bottom))),
                (
                    column == columns - 1 or index + 1 not in targets,
                    ((right, top), (right, bottom)),
                ),
            )
            edges += [edge for is_border, edge in sides if is_border]
        return edges


def _draw_scale(canvas: Canvas, box: Box) -> None:
    """All colours along the longer side, the highest on the right or above."""
    left, top, right, bottom = box
    upright = bottom - top > right - left
    length = bottom - top if upright else right - left
    for step in range(_BAR_STEPS):
        begin = length * step / _BAR_STEPS
        ink = Ink(viridis(step / (_BAR_STEPS - 1)))
        # To the end each time: between neighbours that only touch, a hairline would show.
        rest = (left, top, right, bottom - begin) if upright else (left + begin, top, right, bottom)
        canvas.fill(rest, ink)
