"""A chart with two axes.

Drawn here and not with a plotting library: a report follows the reader's light or dark setting, and
needs nothing installed on a board.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sacvit_deploy.visualize.canvas import (
    Box,
    Canvas,
    Colour,
    Drawing,
    Ink,
    Pen,
    Point,
    Type,
    dashes,
    text_width,
    wrapped,
)

_LEFT, _RIGHT, _TOP = 62.0, 496.0, 14
_WIDTH, _HEIGHT, _BELOW = 520, 286, 50
_HEADING_LINE, _NAME_LINE = 20, 16.0
_MOST_STEPS, _MOST_TRIES = 7, 8
_STEPS, _PERCENT_STEPS = (1, 2, 2.5, 5, 10), (1, 2, 5, 10)
_MOST_LINES = int(_HEIGHT / _NAME_LINE)
# A difference of a point of accuracy is never most of a chart.
_LEAST_PERCENT = 0.10
_RADIUS, _RIM, _CAP = 4.5, 2.0, 4.0
_TITLE, _HEADING, _BODY = Type(13, "ink", "middle"), Type(16, "ink"), Type(13, "quiet")
_TICK_X, _TICK_Y = Type(12, "quiet", "middle"), Type(12, "quiet", "end")
_NAME = Type(12, "ink", halo=True)
_RULE = Pen("ink", 1.5, dashed=True)


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        title: Quantity and unit.
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
        """An axis that ends at round numbers, a little beyond some values of 0 or more.

        One in percent spans 10 points or more, so that it does not magnify noise.
        """
        low, high = min(values), max(values)
        if percent:
            low, high = _widened(low, high)
        room = (high - low or abs(high) or 1) * 0.06
        low, high = max(0.0, low - room), min(high + room, 1.0 if percent else math.inf)
        step, wider = 0.0, _step(low, high, percent=percent)
        while wider > step:
            step = wider
            ends = math.floor(low / step) * step, math.ceil(high / step) * step
            # The wider axis may have fewer ticks, and then ends at those.
            wider = _step(*ends, percent=percent)
        return cls(title, *ends, percent)

    def ticks(self) -> list[float]:
        """Round numbers from end to end."""
        step = _step(self.low, self.high, percent=self.percent)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [count * step for count in range(first, last + 1)]

    def text(self, value: float) -> str:
        """A tick as it is written."""
        return f"{100 * value:.4g} %" if self.percent else f"{value:.4g}"


@dataclass(frozen=True)
class Mark:
    """Text at a point.

    Attributes:
        name: Written beside it.
        tip: Shown where the pointer rests on it.
        above: Write the name above the point rather than below it.
    """

    name: str
    tip: str = ""
    above: bool = False


class Plot(Drawing):
    """A chart to which elements are added, in the units of its axes.

    Later elements cover earlier ones; names lie over all lines, and points over all names.

    Args:
        x: Axis to the right.
        y: Axis upwards.
        title: The chart in words, for readers who cannot see it.
        heading: Lines above the axes, the first in larger letters.
    """

    def __init__(self, x: Axis, y: Axis, title: str, heading: Sequence[str] = ()) -> None:
        self.title = title
        self._x, self._y = x, y
        self._heading = [line for text in heading for line in wrapped(text, 14, _WIDTH - 2 * _TOP)]
        self._top = _TOP + _HEADING_LINE * len(self._heading) + (_TOP if heading else 0)
        self._bottom = self._top + _HEIGHT
        self._shapes: list[Callable[[Canvas], None]] = []
        self._names: list[tuple[str, list[Point]]] = []
        self._taken: list[Box] = []
        self._dots: list[tuple[Point, Colour, Mark]] = []

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in units."""
        return _WIDTH, self._bottom + _BELOW

    def area(self, lower: Sequence[Point], upper: Sequence[Point], ink: Ink) -> None:
        """Fill the space between two lines."""
        outline = [self._place(at) for at in (*upper, *reversed(lower))]
        self._shapes.append(lambda canvas: canvas.area(outline, ink))

    def line(self, points: Sequence[Point], pen: Pen) -> None:
        """Join points."""
        self._stroke([self._place(at) for at in points], pen)

    def bar(self, left: float, right: float, height: float, ink: Ink, tip: str) -> None:
        """Fill a bar from the bottom of the chart."""
        (x, y), (end, bottom) = self._place((left, height)), self._place((right, self._y.low))
        self._shapes.append(lambda canvas: canvas.fill((x + 1, y, end - 1, bottom), ink, tip))

    def interval_across(self, xs: Point, y: float, pen: Pen) -> None:
        """Draw a bar with caps from end to end of a range of x."""
        (left, height), (right, _) = self._place((xs[0], y)), self._place((xs[1], y))
        self._stroke([(left, height), (right, height)], pen)
        for end in (left, right):
            self._stroke([(end, height - _CAP), (end, height + _CAP)], pen)

    def interval_upwards(self, x: float, ys: Point, pen: Pen) -> None:
        """Draw a bar with caps from end to end of a range of y."""
        (middle, top), (_, bottom) = self._place((x, ys[1])), self._place((x, ys[0]))
        self._stroke([(middle, top), (middle, bottom)], pen)
        for end in (top, bottom):
            self._stroke([(middle - _CAP, end), (middle + _CAP, end)], pen)

    def dot(self, at: Point, colour: Colour, mark: Mark) -> None:
        """Mark a point, with its name beside it where there is room."""
        x, y = self._place(at)
        self._dots.append(((x, y), colour, mark))
        self._taken.append((x - 6, y - 6, x + 6, y + 6))
        below, above = ((y + 11, _NAME_LINE), (y - 23, -_NAME_LINE))
        sides = (above, below) if mark.above else (below, above)
        spots = [(x, top + step * line) for step in range(_MOST_TRIES) for top, line in sides]
        self._names.append((mark.name, spots))

    def vertical(self, x: float, name: str) -> None:
        """Draw a dashed line from bottom to top, with its name at the top."""
        self.line([(x, self._y.low), (x, self._y.high)], _RULE)
        left = self._place((x, self._y.low))[0]
        spots = [(left, self._top + 3 + line * _NAME_LINE) for line in range(_MOST_LINES)]
        self._names.append((name, spots))

    def horizontal(self, y: float, name: str) -> None:
        """Draw a dashed line from left to right, with its name at one end."""
        self.line([(self._x.low, y), (self._x.high, y)], _RULE)
        top = self._place((self._x.low, y))[1]
        spots = [(x, top + away) for away in (-18, 3) for x in (_LEFT, _RIGHT)]
        self._names.append((name, spots))

    def draw(self, canvas: Canvas) -> None:
        """Draw on a canvas of this size."""
        for number, line in enumerate(self._heading):
            top = _TOP + number * _HEADING_LINE - (0 if number else 4)
            canvas.text((_TOP, top), line, _BODY if number else _HEADING)
        self._draw_axes(canvas)
        for shape in self._shapes:
            shape(canvas)
        self._draw_names(canvas)
        for at, colour, mark in self._dots:
            canvas.dot(at, _RADIUS + _RIM, Ink("card"))
            canvas.dot(at, _RADIUS, Ink(colour), mark.tip)

    def _draw_axes(self, canvas: Canvas) -> None:
        bottom = self._bottom
        for value in self._y.ticks():
            y = self._place((0, value))[1]
            canvas.line([(_LEFT, y), (_RIGHT, y)], Pen("rule"))
            canvas.text((_LEFT - 8, y - 8), self._y.text(value), _TICK_Y)
        for value in self._x.ticks():
            x = self._place((value, 0))[0]
            canvas.line([(x, bottom), (x, bottom + 5)], Pen("quiet"))
            canvas.text((x, bottom + 7), self._x.text(value), _TICK_X)
        canvas.line([(_LEFT, bottom), (_RIGHT, bottom)], Pen("quiet"))
        canvas.text(((_LEFT + _RIGHT) / 2, bottom + 28), self._x.title, _TITLE)
        turned = Type(13, "ink", "middle", turned=True)
        canvas.text((1, (self._top + bottom) / 2), self._y.title, turned)

    def _draw_names(self, canvas: Canvas) -> None:
        """Write each name beside its first spot that is inside the axes and free."""
        taken = list(self._taken)
        for name, spots in self._names:
            width = text_width(name, _NAME.size)
            boxes = [
                (left, top, left + width, top + _NAME_LINE - 1)
                for x, top in spots
                for left in (x + 4, x - 4 - width)
            ]
            inside = [
                (left, top, right, bottom)
                for left, top, right, bottom in boxes
                if left >= _LEFT and top >= self._top and right <= _RIGHT and bottom <= self._bottom
            ]
            free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
            box = (free + inside + boxes)[0]
            if name:
                canvas.text(box[:2], name, _NAME)
                taken.append(box)

    def _stroke(self, placed: list[Point], pen: Pen) -> None:
        self._shapes.append(lambda canvas: canvas.line(placed, pen))
        self._taken += [(*at, *at) for dash in dashes(placed) for at in dash]

    def _place(self, at: Point) -> Point:
        """A point of the axes in units of the canvas, to a hundredth."""
        x = _LEFT + (at[0] - self._x.low) / (self._x.high - self._x.low) * (_RIGHT - _LEFT)
        y = self._bottom - (at[1] - self._y.low) / (self._y.high - self._y.low) * _HEIGHT
        return round(x, 2), round(y, 2)


def _widened(low: float, high: float) -> Point:
    """Widen a range of shares to the least span of an axis, inside of [0, 1]."""
    missing = max(0.0, _LEAST_PERCENT - (high - low)) / 2
    low, high = low - missing, high + missing
    shift = max(0.0, -low) - max(0.0, high - 1)
    return low + shift, high + shift


def _step(low: float, high: float, *, percent: bool) -> float:
    """The smallest round number that divides the range into a handful of parts."""
    steps = _PERCENT_STEPS if percent else _STEPS
    rough = (high - low) / _MOST_STEPS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in steps if factor * power >= rough * (1 - 1e-9))


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
