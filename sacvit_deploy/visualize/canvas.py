"""A scale of colours that everybody can tell apart."""

from __future__ import annotations

import base64
import io
import itertools
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal, Protocol

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

    Box = tuple[float, float, float, float]
    Point = tuple[float, float]


Colour = tuple[int, int, int]

# Viridis (van der Walt and Smith, 2015, CC0), one polynomial of degree 6 for each of red, green and
# blue, constant term first. Its lightness grows evenly, so that it reads in grey and to the
# colour-blind. No value is more than 3 of 255 from the table.
_VIRIDIS = (
    (0.2777, 0.10509, -0.33086, -4.63423, 6.22827, 4.77638, -5.43546),
    (0.00541, 1.40461, 0.21485, -5.7991, 14.17993, -13.74515, 4.64585),
    (0.3341, 1.38459, 0.0951, -19.33244, 56.69055, -65.35303, 26.31244),
)


def viridis(value: float) -> Colour:
    """From dark violet at 0 over green to yellow at 1; values outside are clipped."""
    x = min(max(value, 0.0), 1.0)
    red, green, blue = (_channel(x, coefficients) for coefficients in _VIRIDIS)
    return red, green, blue


def _channel(x: float, coefficients: tuple[float, ...]) -> int:
    total = sum(factor * x**power for power, factor in enumerate(coefficients))
    return round(255 * min(max(total, 0.0), 1.0))


_FONTS = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
# Distance from the top of a line to its baseline, over the font size.
_ASCENT = 0.95
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class Ink:
    """How something is filled.

    Attributes:
        colour: RGB.
        opacity: 0 is invisible, 1 covers.
    """

    colour: Colour
    opacity: float = 1.0


@dataclass(frozen=True)
class Type:
    """How a line of text is set.

    Attributes:
        size: Height of the font.
        colour: RGB.
        anchor: Which end the given point is.
    """

    size: int
    colour: Colour
    anchor: Literal["start", "end"] = "start"


class Canvas(Protocol):
    """What a sheet is drawn on; boxes are (left, top, right, bottom)."""

    def fill(self, box: Box, ink: Ink) -> None:
        """Fill a rectangle."""

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """Join points, each straight beside or below the one before."""

    def picture(self, box: Box, image: Image.Image) -> None:
        """Lay a picture into a rectangle."""

    def text(self, at: Point, text: str, style: Type) -> None:
        """Write one line, the point being the top of its start or end."""


class PixelCanvas:
    """A Pillow image, `scale` pixels to the unit."""

    def __init__(self, size: tuple[int, int], paper: Colour, scale: int = 2) -> None:
        self.image = Image.new("RGB", (size[0] * scale, size[1] * scale), paper)
        self._scale = scale
        self._draw = ImageDraw.Draw(self.image, "RGBA")

    def fill(self, box: Box, ink: Ink) -> None:
        """See `Canvas.fill`."""
        left, top, right, bottom = (round(side * self._scale) for side in box)
        # Pillow draws its last row and column too.
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        self._draw.rectangle(corners, fill=(*ink.colour, round(255 * ink.opacity)))

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """See `Canvas.line`."""
        reach = width * self._scale / 2
        # Rectangles, since Pillow's lines leave out the corner where two of them meet.
        for start, end in itertools.pairwise(points):
            left, right = sorted(x * self._scale for x in (start[0], end[0]))
            top, bottom = sorted(y * self._scale for y in (start[1], end[1]))
            corners = (left - reach, top - reach, right + reach - 1, bottom + reach - 1)
            self._draw.rectangle(tuple(round(side) for side in corners), fill=colour)

    def picture(self, box: Box, image: Image.Image) -> None:
        """See `Canvas.picture`."""
        left, top, right, bottom = (round(side * self._scale) for side in box)
        size = (right - left, bottom - top)
        fitted = image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
        self.image.paste(fitted, (left, top))

    def text(self, at: Point, text: str, style: Type) -> None:
        """See `Canvas.text`."""
        placed = (at[0] * self._scale, (at[1] + _ASCENT * style.size) * self._scale)
        anchor = "ls" if style.anchor == "start" else "rs"
        font = _font(style.size * self._scale)
        self._draw.text(placed, text, fill=style.colour, font=font, anchor=anchor)

    def png(self) -> bytes:
        """The finished file."""
        stream = io.BytesIO()
        self.image.save(stream, "PNG", optimize=True)
        return stream.getvalue()


class VectorCanvas:
    """An SVG document; pictures are embedded, everything else stays sharp at every size."""

    def __init__(self, size: tuple[int, int], paper: Colour, title: str) -> None:
        self._size = size
        self._title = title
        self._parts: list[str] = []
        self._known: dict[int, str] = {}
        self.fill((0, 0, *size), Ink(paper))

    def fill(self, box: Box, ink: Ink) -> None:
        """See `Canvas.fill`."""
        left, top, right, bottom = box
        # Crisp, or the page shines through between two neighbours.
        crisp = ' shape-rendering="crispEdges"'
        opacity = crisp if ink.opacity == 1 else f' fill-opacity="{ink.opacity:g}"'
        self._parts.append(
            f'<rect x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}" '
            f'fill="{_hex(ink.colour)}"{opacity}/>'
        )

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """See `Canvas.line`."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{_hex(colour)}" '
            f'stroke-width="{width:g}" stroke-linecap="square"/>'
        )

    def picture(self, box: Box, image: Image.Image) -> None:
        """See `Canvas.picture`; the same picture again is a reference to the first."""
        left, top, right, bottom = box
        name = self._known.get(id(image))
        if name is not None:
            self._parts.append(f'<use href="#{name}" x="{left:g}" y="{top:g}"/>')
            return
        name = self._known[id(image)] = f"picture{len(self._known)}"
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        data = base64.b64encode(stream.getvalue()).decode("ascii")
        self._parts.append(
            f'<defs><image id="{name}" width="{right - left:g}" height="{bottom - top:g}" '
            f'preserveAspectRatio="none" href="data:image/jpeg;base64,{data}"/></defs>'
            f'<use href="#{name}" x="{left:g}" y="{top:g}"/>'
        )

    def text(self, at: Point, text: str, style: Type) -> None:
        """See `Canvas.text`; other fonts than Pillow's are made to take its width."""
        if not text:
            return
        anchor = ' text-anchor="end"' if style.anchor == "end" else ""
        self._parts.append(
            f'<text x="{at[0]:g}" y="{at[1] + _ASCENT * style.size:g}" font-size="{style.size}" '
            f'fill="{_hex(style.colour)}" textLength="{text_width(text, style.size):.1f}" '
            f'lengthAdjust="spacingAndGlyphs"{anchor}>{escape(_printable(text))}</text>'
        )

    def svg(self) -> str:
        """The finished document."""
        width, height = self._size
        title = escape(_printable(self._title))
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" font-family="{_FONTS}">\n'
            f"<title>{title}</title>\n{body}\n</svg>\n"
        )


def text_width(text: str, size: int) -> float:
    """Of one line, as Pillow sets it."""
    return float(_font(size).getlength(text))


def fitted(text: str, size: int, width: float) -> str:
    """The text, shortened to a width."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


def wrapped(text: str, size: int, width: float) -> list[str]:
    """The text in lines of a width, broken between words; an empty text has none."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [fitted(line, size, width) for line in lines]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _printable(text: str) -> str:
    """Without control characters, which XML cannot say."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
