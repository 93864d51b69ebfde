"""Files to try the other commands on: sample pictures, a labelled set, the demo bundle."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from sacvit_deploy.bundle import demo_bundle
from sacvit_deploy.errors import ConfigError, raised_as
from sacvit_deploy.files import own_folder, sync
from sacvit_deploy.samples import sample_licences, sample_photographs, sample_pictures

VIEWS = 8
"""Number of views of each photograph in the labelled set."""

_VIEW_PIXELS, _VIEW_QUALITY = 128, 90
_CROP, _BRIGHTNESS = (0.75, 1.0), (0.75, 1.25)

Files = Mapping[str, bytes]
"""Contents of files by their name in a folder, with forward slashes."""


def picture_files() -> Files:
    """The sample pictures, and where they come from."""
    return {path.name: path.read_bytes() for path in (*sample_pictures(), sample_licences())}


def bundle_files() -> Files:
    """The demo bundle and its model card."""
    folder = demo_bundle()
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def labelled_files(seed: int = 0) -> Files:
    """A labelled set of views of the photographs of the package: `class/picture_view.jpg`.

    It serves to try commands. It says nothing about accuracy: views of one photograph are alike.
    The first view is the whole photograph. The others are crops of 75 to 100 % of each side, half
    of them mirrored, at 75 to 125 % of the brightness. All are scaled to at most 128 pixels.

    Args:
        seed: Seed of the views.
    """
    generator = np.random.default_rng(seed)
    files = {sample_licences().name: sample_licences().read_bytes()}
    for sample in sample_photographs().samples:
        with Image.open(sample.name) as opened:
            photograph = opened.convert("RGB")
        for number, view in enumerate(_views(photograph, generator)):
            name = f"{sample.label}/{Path(sample.name).stem}_{number}.jpg"
            files[name] = _encoded(view)
    return files


def _views(photograph: Image.Image, generator: np.random.Generator) -> Iterator[Image.Image]:
    yield photograph
    for _ in range(VIEWS - 1):
        width, height = (round(side * generator.uniform(*_CROP)) for side in photograph.size)
        left = generator.integers(photograph.width - width + 1)
        top = generator.integers(photograph.height - height + 1)
        view = photograph.crop((int(left), int(top), int(left) + width, int(top) + height))
        if generator.random() < 0.5:
            view = ImageOps.mirror(view)
        yield ImageEnhance.Brightness(view).enhance(generator.uniform(*_BRIGHTNESS))


def _encoded(view: Image.Image) -> bytes:
    small, stream = view.copy(), io.BytesIO()
    small.thumbnail((_VIEW_PIXELS, _VIEW_PIXELS), Image.Resampling.BICUBIC)
    small.save(stream, "JPEG", quality=_VIEW_QUALITY)
    return stream.getvalue()


def write_files(folder: Path, files: Files, *, alone: bool) -> None:
    """Write files into a folder, all of them or none; nothing that is there changes.

    What is there with the same content stays.

    Args:
        folder: It is made if there is none.
        files: The files.
        alone: Refuse a folder that holds anything else.

    Raises:
        ConfigError: Something is in the way, or the folder cannot be written.
    """
    with raised_as(ConfigError, f"{folder} cannot be written", "Choose another folder."):
        missing = _missing(folder, files, alone=alone)
        if missing:
            with _made(folder), own_folder(folder) as staging:
                _fill(staging, missing)
                _move(staging, folder)


def _missing(folder: Path, files: Files, *, alone: bool) -> Files:
    """Files that are not in a folder; `ConfigError` where others are in the way."""
    present = [path for path in folder.iterdir() if path.name[0] != "."] if folder.exists() else []
    missing = {name: data for name, data in files.items() if not os.path.lexists(folder / name)}
    for name in files.keys() - missing.keys():
        if not (folder / name).is_file() or (folder / name).read_bytes() != files[name]:
            raise _in_the_way(folder / name)
    others = [path for path in present if path.name not in {name.split("/")[0] for name in files}]
    if alone and (others or (present and missing)):
        raise _in_the_way((others or present)[0])
    return missing


def _in_the_way(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is already there, with other content.", "Choose a new folder, or remove it."
    )


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder if there is none, and remove it if the block fails."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # somebody else has written to it
                folder.rmdir()
        raise


def _fill(staging: Path, files: Files) -> None:
    for name, data in files.items():
        file = staging / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    sync(staging)


def _move(staging: Path, folder: Path) -> None:
    """Move all that is in a folder to another; if that fails, move it back."""
    moved: list[str] = []
    try:
        for entry in sorted(staging.iterdir()):
            os.rename(entry, folder / entry.name)
            moved.append(entry.name)
    except BaseException:
        for name in moved:
            os.rename(folder / name, staging / name)
        raise
