"""Pictures decoded at reduced scale, and where the pixels of the whole picture lie in them."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

Box = tuple[float, float, float, float]

# Pillow's name of a JPEG file, and of one that holds several pictures, as some phones write them.
_DRAFTED = frozenset({"JPEG", "MPO"})
# EXIF orientations of 90 degrees, whose files are stored with width and height exchanged.
_EXCHANGED = frozenset({5, 6, 7, 8})
# Of the upright picture: orientations that put the last stored column, or row, first.
_LEFT_IS_LAST = frozenset({2, 3, 6, 7})
_TOP_IS_LAST = frozenset({3, 4, 7, 8})


@dataclass(frozen=True)
class Reading:
    """An upright RGB picture, whole or at reduced scale.

    Attributes:
        picture: Upright picture of mode RGB.
        size: (width, height) of the whole picture, upright, in pixels.
        scale: Pixels of the whole picture for one of `picture`, in both axes: 1, 2, 4 or 8.
        orientation: EXIF orientation that `picture` was turned by, 1 to 8.
    """

    picture: Image.Image
    size: tuple[int, int]
    scale: int = 1
    orientation: int = 1

    @classmethod
    def whole(cls, picture: Image.Image) -> Reading:
        """Wrap a picture of full scale."""
        return cls(picture, picture.size)

    def located(self, box: Box) -> Box:
        """Find a part of the whole picture in `picture`.

        A side that the scale does not divide ends in a partial pixel. A turned picture begins
        with it.

        Args:
            box: (left, top, right, bottom) in pixels of the whole picture.

        Returns:
            The same in pixels of `picture`.
        """
        x = self._partial(0) if self.orientation in _LEFT_IS_LAST else 0.0
        y = self._partial(1) if self.orientation in _TOP_IS_LAST else 0.0
        left, top, right, bottom = (edge / self.scale for edge in box)
        return left + x, top + y, right + x, bottom + y

    def _partial(self, axis: int) -> float:
        """Width of what the last pixel has beyond the whole picture, in pixels of `picture`."""
        return self.picture.size[axis] - self.size[axis] / self.scale


def draft(picture: Image.Image, least: tuple[int, int], orientation: int) -> int:
    """Have a JPEG that is not loaded yet decoded at reduced scale; others stay as they are.

    libjpeg then computes fewer pixels per block of 8x8, from the low frequencies of the block.

    Args:
        picture: Picture whose header was read; changed in place.
        least: (width, height) that the upright picture keeps at least, in pixels.
        orientation: EXIF orientation of the picture, 1 to 8.

    Returns:
        The scale, as in `Reading`.
    """
    least = least[::-1] if orientation in _EXCHANGED else least
    if picture.format not in _DRAFTED or any(
        side < 2 * enough for side, enough in zip(picture.size, least, strict=True)
    ):
        return 1
    width = picture.width
    drafted = picture.draft(None, least)
    return 1 if drafted is None else round(width / drafted[1][2])


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Size of a stored picture after it is turned."""
    return size[::-1] if orientation in _EXCHANGED else size
