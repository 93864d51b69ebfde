"""A canvas for tests."""

from __future__ import annotations

from collections import namedtuple

Fill = namedtuple("Fill", "box ink tip")
Area = namedtuple("Area", "points ink")
Dot = namedtuple("Dot", "centre radius ink tip")
Line = namedtuple("Line", "points pen")
Text = namedtuple("Text", "at text style")


class Surface:
    """Remembers what was put on it."""

    def __init__(self, drawing=None) -> None:
        self.parts: list = []
        self.pictures: list = []
        if drawing is not None:
            drawing.draw(self)

    def fill(self, box, ink, tip=""):
        self.parts.append(Fill(box, ink, tip))

    def area(self, points, ink):
        self.parts.append(Area(points, ink))

    def dot(self, centre, radius, ink, tip=""):
        self.parts.append(Dot(centre, radius, ink, tip))

    def line(self, points, pen):
        self.parts.append(Line(points, pen))

    def picture(self, box, image):
        self.pictures.append(box)

    def text(self, at, text, style):
        self.parts.append(Text(at, text, style))

    def of(self, kind) -> list:
        return [part for part in self.parts if isinstance(part, kind)]

    def words(self) -> str:
        return "\n".join(part.text for part in self.of(Text))
