"""The canvas of every sheet and chart, in pixels and as SVG, and its colours."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import itertools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image, ImageColor, ImageDraw, ImageFont

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.files import check_output, write_output

Box = tuple[float, float, float, float]
Point = tuple[float, float]
RGB = tuple[int, int, int]
Role = Literal["page", "card", "ink", "quiet", "rule", "early", "late", "other", "wrong"]
Colour = RGB | Role
"""A fixed colour, or a role that light and dark paper show in different ones."""

# What a role looks like on light and on dark paper.
ROLES: dict[Role, tuple[str, str]] = {
    "page": ("#f6f6f8", "#121215"),
    "card": ("#ffffff", "#1b1b20"),
    "ink": ("#1b1b1f", "#ececf1"),
    "quiet": ("#5d5e68", "#a4a5b0"),
    "rule": ("#e2e2e8", "#33343c"),
    "early": ("#2f6fe4", "#6c9eff"),
    "late": ("#d9820f", "#f4a640"),
    "other": ("#8b3fc7", "#c58cf2"),
    "wrong": ("#d9480f", "#ff8a5c"),
}

# Viridis (van der Walt and Smith, 2015, CC0), one polynomial of degree 6 for each of red, green and
# blue, constant term first. Its lightness grows evenly, so that it reads in grey and to the
# colour-blind. No value is more than 3 of 255 from the table.
_VIRIDIS = (
    (0.2777, 0.10509, -0.33086, -4.63423, 6.22827, 4.77638, -5.43546),
    (0.00541, 1.40461, 0.21485, -5.7991, 14.17993, -13.74515, 4.64585),
    (0.3341, 1.38459, 0.0951, -19.33244, 56.69055, -65.35303, 26.31244),
)


def viridis(value: float) -> RGB:
    """Colour of a value in [0, 1], from dark violet over green to yellow; others are clipped."""
    x = min(max(value, 0.0), 1.0)
    sums = (sum(factor * x**power for power, factor in enumerate(row)) for row in _VIRIDIS)
    red, green, blue = (round(255 * min(max(total, 0.0), 1.0)) for total in sums)
    return red, green, blue


_FONTS = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
# Distance from the top of a line to its baseline, over the font size.
_ASCENT = 0.95
_HALO = 1.5
_DASH, _DASH_GAP = 5, 4
_JPEG_QUALITY = 92
_FINE = 4
_FILE_SCALE = 2


@dataclass(frozen=True)
class Ink:
    """Fill of a shape; an opacity of 0 is invisible, 1 covers."""

    colour: Colour
    opacity: float = 1.0


@dataclass(frozen=True)
class Pen:
    """Stroke of a line, its width in units."""

    colour: Colour
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True)
class Type:
    """Setting of a line of text.

    Attributes:
        size: Height of the font.
        colour: Fixed, or a role.
        anchor: Part of the line that the given point marks.
        turned: Read from bottom to top, the top of the letters on the left.
        halo: Surround the letters with the colour of the card.
    """

    size: int
    colour: Colour
    anchor: Literal["start", "middle", "end"] = "start"
    turned: bool = False
    halo: bool = False


class Canvas(Protocol):
    """Surface to draw on; boxes are (left, top, right, bottom), and y grows downwards.

    A tip is shown where the pointer rests on a shape, if the canvas can.
    """

    def fill(self, box: Box, ink: Ink, tip: str = "") -> None:
        """Fill a rectangle."""

    def area(self, points: Sequence[Point], ink: Ink) -> None:
        """Fill a polygon."""

    def dot(self, centre: Point, radius: float, ink: Ink, tip: str = "") -> None:
        """Fill a circle."""

    def line(self, points: Sequence[Point], pen: Pen) -> None:
        """Join points."""

    def picture(self, box: Box, image: Image.Image) -> None:
        """Lay a picture into a rectangle."""

    def text(self, at: Point, text: str, style: Type) -> None:
        """Write one line; the point is on its top, or on its left where it is turned."""


class PixelCanvas:
    """A Pillow image on white, `scale` pixels to the unit.

    Rectangles and upright lines are crisp. Other shapes are drawn at a multiple and reduced.
    """

    def __init__(self, size: tuple[int, int], scale: int = _FILE_SCALE) -> None:
        self.image = Image.new("RGB", (size[0] * scale, size[1] * scale), _rgb("card"))
        self._scale = scale
        self._draw = ImageDraw.Draw(self.image, "RGBA")

    def fill(self, box: Box, ink: Ink, tip: str = "") -> None:
        """See `Canvas.fill`."""
        left, top, right, bottom = (round(side * self._scale) for side in box)
        # Pillow draws its last row and column too.
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        self._draw.rectangle(corners, fill=(*_rgb(ink.colour), round(255 * ink.opacity)))

    def area(self, points: Sequence[Point], ink: Ink) -> None:
        """See `Canvas.area`."""
        with self._smooth(ink) as mask:
            mask.polygon(self._fine(points), fill=255)

    def dot(self, centre: Point, radius: float, ink: Ink, tip: str = "") -> None:
        """See `Canvas.dot`."""
        corners = self._fine([(centre[0] + side, centre[1] + side) for side in (-radius, radius)])
        with self._smooth(ink) as mask:
            mask.ellipse(corners, fill=255)

    def line(self, points: Sequence[Point], pen: Pen) -> None:
        """See `Canvas.line`."""
        if pen.dashed or not _is_upright(points):
            width = round(pen.width * self._scale * _FINE)
            with self._smooth(Ink(pen.colour)) as mask:
                for piece in dashes(points) if pen.dashed else [points]:
                    mask.line(self._fine(piece), 255, width, "curve")
            return
        reach = pen.width * self._scale / 2
        # Rectangles, since Pillow's lines leave out the corner where two of them meet.
        for start, end in itertools.pairwise(points):
            left, right = sorted(x * self._scale for x in (start[0], end[0]))
            top, bottom = sorted(y * self._scale for y in (start[1], end[1]))
            corners = (left - reach, top - reach, right + reach - 1, bottom + reach - 1)
            self._draw.rectangle(tuple(round(side) for side in corners), fill=_rgb(pen.colour))

    def picture(self, box: Box, image: Image.Image) -> None:
        """See `Canvas.picture`."""
        left, top, right, bottom = (round(side * self._scale) for side in box)
        size = (right - left, bottom - top)
        self.image.paste(image.resize(size, Image.Resampling.LANCZOS), (left, top))

    def text(self, at: Point, text: str, style: Type) -> None:
        """See `Canvas.text`."""
        x, y, image = at[0] * self._scale, at[1] * self._scale, self.image
        if style.turned:
            # Everything is turned by a quarter, and back with the text on it.
            x, y, image = image.height - y, x, image.transpose(Image.Transpose.ROTATE_270)
        ImageDraw.Draw(image).text(
            (x, y + _ASCENT * style.size * self._scale),
            text,
            fill=_rgb(style.colour),
            font=_font(style.size * self._scale),
            anchor={"start": "ls", "middle": "ms", "end": "rs"}[style.anchor],
            stroke_width=round(_HALO * self._scale) if style.halo else 0,
            stroke_fill=_rgb("card"),
        )
        if style.turned:
            self.image.paste(image.transpose(Image.Transpose.ROTATE_90))

    @contextlib.contextmanager
    def _smooth(self, ink: Ink) -> Iterator[ImageDraw.ImageDraw]:
        """Lay a colour through a mask that the block draws with 255 on a finer canvas."""
        mask = Image.new("L", (self.image.width * _FINE, self.image.height * _FINE))
        yield ImageDraw.Draw(mask)
        reduced = mask.reduce(_FINE).point(lambda value: value * ink.opacity)
        self.image.paste(_rgb(ink.colour), mask=reduced)

    def _fine(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self._scale * _FINE, y * self._scale * _FINE) for x, y in points]


class VectorCanvas:
    """An SVG element; pictures are embedded, everything else stays sharp at every size.

    It is a document of its own on white or, `inline`, a part of an HTML page that has a style
    variable for each role.
    """

    def __init__(self, size: tuple[int, int], title: str, *, inline: bool = False) -> None:
        self._size = size
        self._title = _escaped(title)
        self._inline = inline
        self._parts: list[str] = []
        self._known: dict[int, str] = {}
        if not inline:
            self.fill((0, 0, *size), Ink("card"))

    def fill(self, box: Box, ink: Ink, tip: str = "") -> None:
        """See `Canvas.fill`."""
        left, top, right, bottom = box
        size = f'width="{right - left:g}" height="{bottom - top:g}"'
        # Crisp, or the page shines through between two neighbours.
        crisp = ' shape-rendering="crispEdges"' if ink.opacity == 1 else ""
        self._shape(f'rect x="{left:g}" y="{top:g}" {size}', ink, tip, crisp)

    def area(self, points: Sequence[Point], ink: Ink) -> None:
        """See `Canvas.area`."""
        self._shape(f'polygon points="{_path(points)}"', ink)

    def dot(self, centre: Point, radius: float, ink: Ink, tip: str = "") -> None:
        """See `Canvas.dot`."""
        self._shape(f'circle cx="{centre[0]:g}" cy="{centre[1]:g}" r="{radius:g}"', ink, tip)

    def line(self, points: Sequence[Point], pen: Pen) -> None:
        """See `Canvas.line`."""
        end = ' stroke-linecap="square"' if _is_upright(points) else ' stroke-linejoin="round"'
        dashed = f' stroke-dasharray="{_DASH} {_DASH_GAP}"'
        self._parts.append(
            f'<polyline points="{_path(points)}" fill="none" stroke="{self._paint(pen.colour)}" '
            f'stroke-width="{pen.width:g}"{dashed if pen.dashed else end}/>'
        )

    def picture(self, box: Box, image: Image.Image) -> None:
        """See `Canvas.picture`; the same picture again is a reference to the first."""
        left, top, right, bottom = box
        name = self._known.get(id(image))
        if name is None:
            name = self._known[id(image)] = f"picture{len(self._known)}"
            stream = io.BytesIO()
            image.convert("RGB").save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
            data = base64.b64encode(stream.getvalue()).decode("ascii")
            self._parts.append(
                f'<defs><image id="{name}" width="{right - left:g}" height="{bottom - top:g}" '
                f'preserveAspectRatio="none" href="data:image/jpeg;base64,{data}"/></defs>'
            )
        self._parts.append(f'<use href="#{name}" x="{left:g}" y="{top:g}"/>')

    def text(self, at: Point, text: str, style: Type) -> None:
        """See `Canvas.text`; other fonts than Pillow's are fitted to its width."""
        if not text:
            return
        x, y, baseline = *at, _ASCENT * style.size
        place = f'x="{x:g}" y="{y + baseline:g}"'
        if style.turned:
            place = f'transform="translate({x + baseline:g} {y:g}) rotate(-90)"'
        anchor = "" if style.anchor == "start" else f' text-anchor="{style.anchor}"'
        halo = (
            f' stroke="{self._paint("card")}" stroke-width="{2 * _HALO:g}" '
            'stroke-linejoin="round" paint-order="stroke"'
        )
        self._parts.append(
            f'<text {place} font-size="{style.size}" fill="{self._paint(style.colour)}" '
            f'textLength="{text_width(text, style.size):.1f}" lengthAdjust="spacingAndGlyphs"'
            f"{anchor}{halo if style.halo else ''}>{_escaped(text)}</text>"
        )

    def svg(self) -> str:
        """The finished element."""
        width, height = self._size
        view = f'viewBox="0 0 {width} {height}" role="img" font-family="{_FONTS}"'
        body = "\n".join(self._parts)
        if self._inline:
            look = f'aria-label="{self._title}" style="max-width:{1.2 * width:.0f}px"'
            return f"<svg {view} {look}>\n{body}\n</svg>"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {view}>\n'
            f"<title>{self._title}</title>\n{body}\n</svg>\n"
        )

    def _shape(self, outline: str, ink: Ink, tip: str = "", extra: str = "") -> None:
        opacity = "" if ink.opacity == 1 else f' fill-opacity="{ink.opacity:g}"'
        start = f'<{outline} fill="{self._paint(ink.colour)}"{opacity}{extra}'
        title = f"<title>{_escaped(tip)}</title>"
        self._parts.append(f"{start}>{title}</{outline.split()[0]}>" if tip else f"{start}/>")

    def _paint(self, colour: Colour) -> str:
        if isinstance(colour, str):
            return f"var(--{colour})" if self._inline else ROLES[colour][0]
        return "#{:02x}{:02x}{:02x}".format(*colour)


class Drawing(ABC):
    """A figure that any canvas of its size can show; a notebook shows it too.

    Attributes:
        title: The figure in words.
    """

    title: str

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(width, height) in units."""

    @abstractmethod
    def draw(self, canvas: Canvas) -> None:
        """Draw on a canvas of this size."""

    def image(self, scale: int = _FILE_SCALE) -> Image.Image:
        """RGB pixels, `scale` to the unit."""
        canvas = PixelCanvas(self.size, scale)
        self.draw(canvas)
        return canvas.image

    def svg(self, *, inline: bool = False) -> str:
        """Vectors and text, with pictures embedded; see `VectorCanvas`."""
        canvas = VectorCanvas(self.size, self.title, inline=inline)
        self.draw(canvas)
        return canvas.svg()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.png` or `.svg` file, whole or not at all.

        Raises:
            ConfigError: The name ends otherwise, or the file cannot be written.
        """
        file = check_drawing_file(path)
        is_vector = file.suffix.lower() == ".svg"
        write_output(file, self.svg() if is_vector else self._repr_png_(_FILE_SCALE))

    def _repr_png_(self, scale: int = 1) -> bytes:
        stream = io.BytesIO()
        self.image(scale).save(stream, "PNG", optimize=True)
        return stream.getvalue()

    def _repr_svg_(self) -> str:
        return self.svg()


def check_drawing_file(path: str | os.PathLike[str]) -> Path:
    """Check before the work that `Drawing.save` can write a file.

    Raises:
        ConfigError: The name does not end in .png or .svg, or the file cannot be written.
    """
    file = Path(path)
    if file.suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"{file} does not say which format to write.", "Name it .png or .svg.")
    check_output(file)
    return file


def text_width(text: str, size: int) -> float:
    """Width of one line, as Pillow sets it."""
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


def outline(box: Box) -> list[Point]:
    """The closed line around a box, clockwise from its left top corner."""
    left, top, right, bottom = box
    return [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]


def dashes(points: Sequence[Point]) -> Iterator[list[Point]]:
    """The pieces of each side that are drawn if a line is dashed."""
    for (x, y), (x_end, y_end) in itertools.pairwise(points):
        length = math.hypot(x_end - x, y_end - y)
        for start in range(0, math.ceil(length), _DASH + _DASH_GAP):
            shares = (start / length, min(1.0, (start + _DASH) / length))
            yield [(x + share * (x_end - x), y + share * (y_end - y)) for share in shares]


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _rgb(colour: Colour) -> tuple[int, ...]:
    return ImageColor.getrgb(ROLES[colour][0]) if isinstance(colour, str) else colour


def _is_upright(points: Sequence[Point]) -> bool:
    """Whether each point is straight beside or below the one before."""
    return all(a[0] == b[0] or a[1] == b[1] for a, b in itertools.pairwise(points))


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def _escaped(text: str) -> str:
    """Text for XML, which cannot say control characters."""
    return escape("".join(letter if letter.isprintable() else " " for letter in text))
