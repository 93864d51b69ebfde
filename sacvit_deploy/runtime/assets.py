"""Files that ship with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

_PICTURES = ("chelsea.jpg", "coffee.jpg", "astronaut.jpg", "rocket.jpg")


def demo_bundle() -> Path:
    """The small trained SAC-ViT that ships with the package; MODEL_CARD.md in it says more.

    Returns:
        Path of its bundle, 50 classes at 64 pixels.
    """
    return Path(str(resources.files("sacvit_deploy") / "assets" / "demo_bundle"))


def sample_pictures() -> tuple[Path, ...]:
    """Freely licensed photographs to try a model on; LICENSES.md beside them names the sources.

    Returns:
        Paths of JPEG files: a tabby cat, a cup of espresso, an astronaut, a rocket.
    """
    folder = resources.files("sacvit_deploy") / "assets" / "pictures"
    return tuple(Path(str(folder / name)) for name in _PICTURES)
