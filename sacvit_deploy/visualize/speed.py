"""The picture of a benchmark: time of a picture in each network, and the limit of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sacvit_deploy.benchmark.benchmark import Benchmark
from sacvit_deploy.benchmark.rows import Row
from sacvit_deploy.visualize.canvas import Canvas, Colour, Drawing, Ink, Pen, Type, text_width
from sacvit_deploy.visualize.plot import Axis

_MARGIN, _WIDTH, _BAR, _GAP, _SPACE = 14.0, 720.0, 16.0, 3.0, 14.0
_TITLE_LINE, _LINE, _AXIS = 24.0, 20.0, 34.0
_HEADING, _BODY, _NAME = Type(16, "ink"), Type(13, "quiet"), Type(13, "ink")
_VALUE = Type(12, "quiet")
_TICK = Type(12, "quiet", "middle")
_LIMIT = Pen("ink", 2.5)
_LEGEND: dict[str, Colour] = {
    "first stage": "early",
    "second stage": "late",
    "between": "other",
    "dense": "quiet",
}
_VALUE_ROOM = 116.0


@dataclass(frozen=True)
class _Bar:
    """One bar: its parts from the left, its limit, and the words behind it."""

    parts: tuple[tuple[Colour, float], ...]
    limit: float | None
    text: str

    @property
    def length(self) -> float:
        return sum(ms for _, ms in self.parts)


class SpeedChart(Drawing):
    """Bars of milliseconds for one picture, and a mark where the matrix products alone end.

    Attributes:
        axis: Milliseconds of one picture.
    """

    title = "Time of a picture"

    def __init__(self, found: Benchmark) -> None:
        self._found = found
        self._groups = [(_name(row), list(_bars(row))) for row in found.rows]
        self._left = _MARGIN + 10 + max((text_width(n, 13) for n, _ in self._groups), default=0.0)
        bars = [bar for _, group in self._groups for bar in group]
        longest = max((max(bar.length, bar.limit or 0.0) for bar in bars), default=1.0)
        self.axis = Axis("ms", 0.0, longest)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in units."""
        heights = sum(self._height(bars) for _, bars in self._groups)
        return round(_WIDTH), round(self._top + heights + _AXIS + _MARGIN)

    @property
    def _top(self) -> float:
        return _MARGIN + _TITLE_LINE + 2 * _LINE + 8

    @staticmethod
    def _height(bars: list[_Bar]) -> float:
        return len(bars) * (_BAR + _GAP) + _SPACE

    def draw(self, canvas: Canvas) -> None:
        """Draw on a canvas of this size."""
        self._draw_heading(canvas)
        top = self._top
        bottom = top + sum(self._height(bars) for _, bars in self._groups)
        for tick in self.axis.ticks():
            x = self._place(tick)
            canvas.line([(x, top), (x, bottom)], Pen("rule"))
            canvas.text((x, bottom + 4), self.axis.text(tick), _TICK)
        for name, bars in self._groups:
            canvas.text((_MARGIN, top), name, _NAME)
            for bar in bars:
                self._draw_bar(canvas, bar, top)
                top += _BAR + _GAP
            top += _SPACE

    def _draw_heading(self, canvas: Canvas) -> None:
        found = self._found
        canvas.text((_MARGIN, _MARGIN - 4), "Time of one picture (ms)", _HEADING)
        y = _MARGIN + _TITLE_LINE
        canvas.text((_MARGIN, y), f"{found.bundle.path.resolve().name} on {found.device}", _BODY)
        x, y = _MARGIN, y + _LINE
        for name, colour in _LEGEND.items():
            canvas.fill((x, y + 2, x + 12, y + 14), Ink(colour))
            canvas.text((x + 17, y), name, _BODY)
            x += 17 + text_width(name, 13) + 18
        canvas.line([(x, y + 1), (x, y + 15)], _LIMIT)
        canvas.text((x + 8, y), "limit: its matrix products alone", _BODY)

    def _draw_bar(self, canvas: Canvas, bar: _Bar, top: float) -> None:
        at = 0.0
        for colour, ms in bar.parts:
            box = (self._place(at), top, self._place(at + ms), top + _BAR)
            canvas.fill(box, Ink(colour, 0.9), f"{ms:.2f} ms")
            at += ms
        end = self._place(max(at, bar.limit or 0.0))
        canvas.text((end + 6, top), bar.text, _VALUE)
        if bar.limit is not None:
            x = self._place(bar.limit)
            canvas.line([(x, top - 1), (x, top + _BAR + 1)], _LIMIT)

    def _place(self, ms: float) -> float:
        width = _WIDTH - _MARGIN - _VALUE_ROOM - self._left
        return self._left + ms / self.axis.high * width


def _name(row: Row) -> str:
    return f"batch {row.batch}, {row.name}"


def _bars(row: Row) -> Iterator[_Bar]:
    """The network itself, then the dense one; milliseconds of one picture."""
    batch, own = row.batch, row.own
    whole = own.summary.p50 / batch
    factor = "" if row.speedup is None else f", {row.speedup:.2f}x"
    text = f"{whole:.2f}{factor}"
    limit = own.floor_ms and own.floor_ms / batch
    if row.has_two_stages:
        early = row.own.summary.graphs_p50["early_exit"] / batch
        late = own.summary.refined * (row.refine_ms_per_picture or 0.0)
        between = max(whole - early - late, 0.0)
        yield _Bar((("early", early), ("late", late), ("other", between)), limit, text)
    else:
        yield _Bar((("early", whole),), limit, text)
    if row.dense is not None:
        dense, limit = row.dense.summary.p50 / batch, row.dense.floor_ms
        yield _Bar((("quiet", dense),), limit and limit / batch, f"{dense:.2f}")
