"""A chart as a piece of SVG that takes its colours from the page around it.

Written here rather than with a plotting library because a report is to be small, to follow the
reader's light or dark setting, and to need nothing installed on a board.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    Point = tuple[float, float]


_WIDTH, _HEIGHT = 520, 350
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 24, 14, 50
_MOST_STEPS = 6
_LETTER, _LINE = 6.8, 16
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        title: What it shows, with the unit.
        low: Smallest value.
        high: Largest value, above `low`.
        percent: Write 0.5 as 50 %.
    """

    title: str
    low: float
    high: float
    percent: bool = False

    @classmethod
    def around(cls, title: str, values: Sequence[float], *, percent: bool = False) -> Axis:
        """An axis with room for some values and a little more, that ends at round numbers."""
        low, high = min(values), max(values)
        room = (high - low or abs(high) or 1) * 0.06
        step = _step(low - room, high + room)
        low = math.floor((low - room) / step) * step
        high = math.ceil((high + room) / step) * step
        return cls(title, max(0.0, low), min(1.0, high) if percent else high, percent)

    def ticks(self) -> list[float]:
        """Round numbers from end to end."""
        step = _step(self.low, self.high)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [count * step for count in range(first, last + 1)]

    def text(self, value: float) -> str:
        """A tick as it is written."""
        return f"{100 * value:.4g} %" if self.percent else f"{value:.4g}"


@dataclass(frozen=True)
class Mark:
    """What is written at a point.

    Attributes:
        name: Beside it.
        tip: Where the pointer rests on it.
        above: Write the name above the point and not below it.
    """

    name: str
    tip: str
    above: bool = False


class Plot:
    """A chart that is drawn element by element, the later over the earlier.

    Colours are names of classes that the page defines: `early`, `late`, `mix`, `other`.
    """

    def __init__(self, x: Axis, y: Axis, description: str) -> None:
        """Draw the axes.

        Args:
            x: To the right.
            y: Upwards.
            description: For those who cannot see the chart.
        """
        self._x, self._y = x, y
        self._description = description
        self._parts: list[str] = []
        # Over everything else, labels too.
        self._dots: list[str] = []
        self._taken: list[tuple[float, float, float]] = []
        self._axes()

    def area(self, lower: Sequence[Point], upper: Sequence[Point], colour: str) -> None:
        """Fill the space between two lines."""
        outline = [*upper, *reversed(lower)]
        self._parts.append(f'<polygon class="area {colour}" points="{self._path(outline)}"/>')

    def line(self, points: Sequence[Point], colour: str) -> None:
        """Join points."""
        self._parts.append(f'<polyline class="line {colour}" points="{self._path(points)}"/>')

    def bar(self, left: float, right: float, height: float, colour: str, tip: str) -> None:
        """A bar from the bottom of the chart."""
        x, x_end = self._px(left), self._px(right)
        y, bottom = self._py(height), self._py(self._y.low)
        self._parts.append(
            f'<rect class="bar {colour}" x="{x + 1:.1f}" y="{y:.1f}" '
            f'width="{max(0.0, x_end - x - 2):.1f}" height="{bottom - y:.1f}">'
            f"<title>{escape(tip)}</title></rect>"
        )

    def dot(self, at: Point, colour: str, mark: Mark) -> None:
        """Mark a point, with its name beside it where there is room."""
        x, y = self._px(at[0]), self._py(at[1])
        self._dots.append(
            f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="5.5">'
            f"<title>{escape(mark.tip)}</title></circle>"
        )
        self._label(x, y - 12 if mark.above else y + 23, mark.name, -1 if mark.above else 1)

    def vertical(self, x: float, label: str) -> None:
        """A dashed line from bottom to top, named at its top."""
        at = self._px(x)
        self._parts.append(
            f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        )
        self._label(at, _TOP + 14, label)

    def svg(self) -> str:
        """The finished element."""
        return (
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{escape(self._description)}">{"".join(self._parts + self._dots)}</svg>'
        )

    def _axes(self) -> None:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        for value in self._y.ticks():
            y = self._py(value)
            self._parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
                f"{self._y.text(value)}</text>"
            )
        for value in self._x.ticks():
            x = self._px(value)
            self._parts.append(
                f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>'
                f'<text class="tick" x="{x:.1f}" y="{bottom + 19}" text-anchor="middle">'
                f"{self._x.text(value)}</text>"
            )
        middle_x, middle_y = (_LEFT + right) / 2, (_TOP + bottom) / 2
        self._parts.append(
            f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
            f'<text x="{middle_x}" y="{_HEIGHT - 9}" text-anchor="middle">'
            f"{escape(self._x.title)}</text>"
            f'<text transform="translate(13 {middle_y}) rotate(-90)" text-anchor="middle">'
            f"{escape(self._y.title)}</text>"
        )

    def _label(self, x: float, y: float, text: str, away: int = 1) -> None:
        """To the side where there is room, and below (1) or above (-1) the labels already there."""
        if not text:
            return
        width = len(text) * _LETTER
        to_left = x + width + 8 > _WIDTH - _RIGHT
        left = x - width - 4 if to_left else x + 4
        while any(
            left < end and start < left + width and abs(y - taken) < _LINE
            for start, end, taken in self._taken
        ):
            y += away * _LINE
        self._taken.append((left, left + width, y))
        anchor, at = ("end", x - 4) if to_left else ("start", x + 4)
        self._parts.append(
            f'<text class="label" x="{at:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )

    def _path(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self._px(x):.1f},{self._py(y):.1f}" for x, y in points)

    def _px(self, value: float) -> float:
        share = (value - self._x.low) / (self._x.high - self._x.low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def _py(self, value: float) -> float:
        share = (value - self._y.low) / (self._y.high - self._y.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _step(low: float, high: float) -> float:
    """The smallest round number that divides the range into a handful of parts."""
    rough = (high - low) / _MOST_STEPS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in _STEPS if factor * power >= rough * (1 - 1e-9))
