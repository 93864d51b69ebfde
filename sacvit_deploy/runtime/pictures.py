"""Reading any picture as one upright RGB picture of 8 bits per channel.

Every caller gets the same rules:

- Transparent pixels are composited on white, as on a page. Without the alpha channel they would
  show hidden colours, which differ between editors.
- The EXIF orientation is applied, even to a PIL picture that still has the tag.
- 16-bit greys are scaled to 8 bits. 32-bit greys (modes I and F) do not define white. It is the
  smallest of 1 (F only), 255 and 65535 that no pixel exceeds.
- Colour profiles are ignored, as in common training pipelines.
- Files with several frames give the first one.

Pillow's process-wide settings are neither changed nor used.

`read_reduced` follows the same rules, and decodes large JPEG files at reduced scale.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import IO, Literal, Union, get_args

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from sacvit_deploy.decode import check_field
from sacvit_deploy.errors import ImageError, raised_as
from sacvit_deploy.files import open_regular
from sacvit_deploy.runtime.reduced import Reading, draft, upright_size
from sacvit_deploy.samples import Sample

PictureSource = Union[
    str, "os.PathLike[str]", bytes, IO[bytes], Sample, Image.Image, "npt.NDArray[np.uint8]"
]

Channels = Literal["rgb", "bgr"]
"""Order of the colours in an array."""

MAX_PIXELS = 178_956_970
"""Largest number of pixels that a file may announce: Pillow's own limit.

As RGB they take 0.7 GB. Another mode is decoded beside it, and a turned picture is copied, which
makes up to 1.5 GB for JPEG and PNG; decoders of other formats may take more. A caller can open a
larger picture with Pillow and pass the PIL picture.
"""

MAX_SIDE = 1_000_000
"""Largest width or height that a file may announce, in pixels: every row has its own cost."""

_STRIP_PIXELS = 1 << 20

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""File formats that are read. Some of Pillow's others start programs (EPS)."""

_OPAQUE_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
_ALPHA_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DAMAGED = "It is damaged or incomplete: copy or download it again, or save it anew."


def read_picture(source: PictureSource) -> Image.Image:
    """Read a picture for a classifier.

    Safe to call from several threads, except with the same PIL picture before it is loaded:
    Pillow loads it in place.

    Args:
        source: A path, the bytes of a file, a file opened for reading bytes, a sample of a data
            set, a PIL picture of any mode, or a uint8 array of shape (H, W, 3) in RGB order.

    Returns:
        An upright picture of mode RGB. It is `source` itself if nothing had to change.

    Raises:
        ImageError: The source is missing, unreadable, not a picture, damaged, empty, larger than
            `MAX_PIXELS` or `MAX_SIDE`, or of a kind that has no agreed conversion to RGB.
    """
    return read_reduced(source).picture


def read_reduced(source: PictureSource, least: tuple[int, int] | None = None) -> Reading:
    """Read a picture, a large JPEG file at reduced scale.

    Args:
        source: A picture as `read_picture` takes it.
        least: (width, height) in pixels, 1 or more each, that the upright picture keeps at least.
            None reads the whole picture.

    Returns:
        The picture and its scale, which is 1 for everything but JPEG files at least twice as wide
        and as high as `least`.

    Raises:
        ImageError: As for `read_picture`; the limits are those of the whole picture.
    """
    if isinstance(source, Image.Image):
        name = f"The PIL picture ({source.mode}, {_size(source)})"
        return Reading.whole(_to_rgb(source, name)[0])
    if isinstance(source, np.ndarray):
        return Reading.whole(_from_array(source))
    if isinstance(source, Sample):
        return _read_stream(f"The picture {source.name!r}", source.open, least)
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        name = f"The picture {path!r}"
        if os.path.isdir(path):
            raise ImageError(f"{name} is a folder.", "Name the picture files in it.")
        return _read_stream(name, lambda: open_regular(path), least)
    if isinstance(source, bytes):
        return _read_stream(f"The picture of {len(source):,} bytes", lambda: BytesIO(source), least)
    if hasattr(source, "read"):
        name = f"The picture in {name_of(source) or type(source).__name__}"
        return _read_stream(name, lambda: _whole_file(source), least)
    fix = "Pass a path, bytes, an open file, a PIL picture, or a uint8 array of shape "
    fix += "(height, width, 3)."
    if isinstance(source, Iterator):
        fix = "Pass pictures that come one after another to stream(...), or make a list of them."
    raise ImageError(f"A picture was asked for and {type(source).__name__} found.", fix)


def in_rgb(channels: Channels) -> Callable[[PictureSource], PictureSource]:
    """Make the function that turns arrays (H, W, 3) of that order to RGB, and nothing else.

    Raises:
        ConfigError: There is no such order.
    """
    known = isinstance(channels, str) and channels in get_args(Channels)
    check_field(known, "channels", channels, " or ".join(get_args(Channels)))
    if channels == "rgb":
        return lambda source: source
    return lambda source: source[..., ::-1] if isinstance(source, np.ndarray) else source


def name_of(source: PictureSource) -> str | None:
    """Return the path as it was given, or of an open file; None for a picture without one."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else None


def _whole_file(file: IO[bytes]) -> BytesIO:
    """Read an open file from where it stands; it stays open, and need not be seekable."""
    content = file.read()
    if not isinstance(content, bytes):
        raise ImageError(
            f"The picture in {name_of(file) or type(file).__name__} was opened for text.",
            "Open it for bytes: mode 'rb'.",
        )
    return BytesIO(content)


def _read_stream(
    name: str, opener: Callable[[], IO[bytes]], least: tuple[int, int] | None
) -> Reading:
    try:
        with opener() as stream:
            picture = _open(stream, name)
            stored, scale = picture.size, 1
            if least is not None:
                with raised_as(ImageError, f"{name} cannot be decoded", _DAMAGED, Exception):
                    scale = draft(picture, least, _orientation(picture))
            rgb, orientation = _to_rgb(picture, name)
            if scale == 1:
                return Reading.whole(rgb)
            return Reading(rgb, upright_size(stored, orientation), scale, orientation)
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist.", "Check the path.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(
            f"{name} cannot be opened: {reason}.", "Check the path and the file's permissions."
        ) from error


def _open(stream: IO[bytes], name: str) -> Image.Image:
    """Read the header and refuse a picture that is too large.

    This is `Image.open` with a limit of our own. Pillow's belongs to the whole process, and
    pictures below it raise warnings.
    """
    prefix = stream.read(16)
    if not prefix:
        raise ImageError(f"{name} is an empty file (0 bytes).", "Copy or download it again.")
    picture = _identify(stream, prefix, name)
    pixels = picture.width * picture.height
    if pixels > MAX_PIXELS or max(picture.size) > MAX_SIDE:
        raise ImageError(
            f"{name} announces {_size(picture)} = {pixels:,} pixels; "
            f"at most {MAX_PIXELS:,} are decoded, and {MAX_SIDE:,} on a side.",
            "Make it smaller first, or open it with Pillow and pass the PIL picture.",
        )
    return picture


def _identify(stream: IO[bytes], prefix: bytes, name: str) -> Image.Image:
    complaint = None
    # The first step loads Pillow's common formats only, to save start-up time.
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        for factory, accept in (Image.OPEN[f] for f in FORMATS if f in Image.OPEN):
            accepted = accept is None or accept(prefix)
            if isinstance(accepted, str):
                complaint = accepted
            elif accepted:
                stream.seek(0)
                # A parser may raise anything on bad bytes.
                with raised_as(ImageError, f"{name} cannot be decoded", _DAMAGED, Exception):
                    return factory(stream, "")
    found = complaint or f"it starts with {prefix!r}"
    raise ImageError(
        f"{name} is not a picture that can be read: {found}.", f"Use one of {', '.join(FORMATS)}."
    )


def _from_array(array: npt.NDArray[np.generic]) -> Image.Image:
    found = f"{array.dtype} of shape {array.shape}"
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"An array picture must be uint8 of shape (height, width, 3) in RGB; it is {found}.",
            _array_fix(array),
        )
    if array.size == 0:
        raise ImageError(f"The array picture has no pixels: it is {found}.", "Pass a picture.")
    return Image.fromarray(array)


def _array_fix(array: npt.NDArray[np.generic]) -> str:
    if array.ndim == 2:
        return "Repeat the grey channel: np.stack([array] * 3, axis=-1), as uint8."
    if array.ndim == 4:
        return "Pass the pictures of a batch as a list of arrays."
    if array.ndim != 3:
        return "Pass one picture, height first, then width, then the three colours."
    if array.shape[2] == 4:
        return "Drop the alpha channel, array[..., :3], or pass a PIL picture of mode RGBA."
    if array.shape[2] != 3:
        return "Put the three colours last: array.transpose(1, 2, 0) if they come first."
    if np.issubdtype(array.dtype, np.floating):
        return "If it holds 0 to 1: (array * 255).round().astype(np.uint8)."
    return "Scale it to 0 to 255 and convert: array.astype(np.uint8)."


def _to_rgb(picture: Image.Image, name: str) -> tuple[Image.Image, int]:
    """Load, convert and turn a picture; return it and the orientation it was stored in."""
    if 0 in picture.size:
        raise ImageError(f"{name} has no pixels: it is {_size(picture)}.", "Pass a picture.")
    try:
        picture.load()
        rgb = _convert(picture, name)
    except ImageError:
        raise
    except Exception as error:  # a decoder may raise anything on bad bytes
        raise ImageError(f"{name} cannot be decoded: {error}.", _DAMAGED) from error
    orientation = _orientation(picture)  # a PNG may have its tag behind the pixels
    transposition = _UPRIGHT.get(orientation)
    del picture  # a large one goes before the next copy is made
    if transposition is None:
        return rgb, orientation
    rgb = rgb.transpose(transposition)
    rgb.info = {}  # it holds the orientation tag, which would turn the picture again
    return rgb, orientation


def _convert(picture: Image.Image, name: str) -> Image.Image:
    """Convert strip by strip, since the steps of some modes take five times the memory."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    convert = _conversion(picture, name)
    rgb = Image.new("RGB", picture.size)
    for top, strip in _strips(picture):
        rgb.paste(convert(strip), (0, top))
    return rgb


def _strips(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Cut a picture into strips of whole rows, and name the first row of each."""
    rows = max(1, _STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        yield top, picture.crop((0, top, picture.width, bottom))


def _conversion(picture: Image.Image, name: str) -> Callable[[Image.Image], Image.Image]:
    """How strips of a picture become RGB."""
    mode = picture.mode
    if mode.startswith("I;16"):
        return lambda strip: _from_grey(np.asarray(strip), 65535)
    if mode in ("I", "F"):
        white = _white_level(picture, name)
        return lambda strip: _from_grey(np.asarray(strip), white)
    if mode in _ALPHA_MODES or (mode in _OPAQUE_MODES and "transparency" in picture.info):
        return _on_white
    if mode in _OPAQUE_MODES:
        return lambda strip: strip.convert("RGB")
    raise ImageError(f"{name} is of mode {mode}, which is not read.", "Save it as RGB.")


def _on_white(picture: Image.Image) -> Image.Image:
    straight = picture.convert("LA") if picture.mode == "La" else picture
    straight = straight.convert("RGBA")
    white = Image.new("RGBA", straight.size, "white")
    return Image.alpha_composite(white, straight).convert("RGB")


def _white_level(picture: Image.Image, name: str) -> int:
    """Find the value of white in a 32-bit grey picture."""
    ranges = [(a.min(), a.max()) for a in (np.asarray(strip) for _, strip in _strips(picture))]
    low, high = float(np.min(ranges)), float(np.max(ranges))
    levels = (1, 255, 65535) if picture.mode == "F" else (255, 65535)
    # Negated, so that NaN fails too.
    if not (low >= 0 and high <= levels[-1]):
        raise ImageError(
            f"{name} is a 32-bit grey with values from {low:g} to {high:g}; "
            f"0 to {levels[-1]} can be read.",
            "Scale it to 0 (black) to 255 (white) first.",
        )
    return next(level for level in levels if high <= level)


def _from_grey(values: npt.NDArray[np.generic], white: int) -> Image.Image:
    """Scale greys of 0 to `white` to 8 bits, rounding to the nearest."""
    scaled = values.astype(np.float64) * (255 / white) + 0.5
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def _orientation(picture: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8; 1 (upright) if there is none. Pillow itself turns TIFF."""
    # Not picture.getexif(), which fills a cache in a picture that threads may share.
    exif = Image.Exif()
    try:
        exif.load(picture.info.get("exif") or b"")
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # a parser may raise anything on bad bytes
        return 1  # a damaged EXIF block does not affect the pixels


def _size(picture: Image.Image) -> str:
    return f"{picture.width}x{picture.height}"
