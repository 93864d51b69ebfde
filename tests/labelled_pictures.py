"""Data sets of random pictures in class folders, and zips of them."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

from PIL import Image

from tests.fakes import random_pictures

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def write_pictures(folder: Path, classes: Sequence[str], count: int, seed: int = 0) -> Path:
    """A folder of `count` pictures, dealt out to the classes in turn: `class/000.png`, ..."""
    for index, picture in enumerate(random_pictures(count, seed)):
        home = folder / classes[index % len(classes)]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(home / f"{index:03}.png")
    return folder


def zipped(folder: Path) -> Path:
    """The same as a zip, under a top folder."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, f"top/{file.relative_to(folder).as_posix()}")
    return path
