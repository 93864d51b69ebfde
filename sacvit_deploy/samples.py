"""Data sets on disk: a folder of class folders, a zip of one, or a table.

Verification, evaluation, calibration and training all read DATA here. A folder of pictures will do
where labels do not matter.
"""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import IO

from sacvit_deploy.decode import parse_json, shown
from sacvit_deploy.errors import ConfigError, DataError, raised_as
from sacvit_deploy.files import open_regular

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif", ".jp2"}
)
"""File name suffixes of pictures, in lower case."""

# A damaged directory, damaged data, an unknown method, and a password (RuntimeError).
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
_WANTED = (
    "Give a folder with one folder of pictures for each class, a zip of such a folder, or a "
    ".csv or .jsonl file with the columns path and label."
)


@dataclass(frozen=True)
class Sample:
    """One labelled picture, not read yet.

    Attributes:
        name: Path of the picture, or its name in the archive.
        label: Name of its class; empty if it has none.
        archive: Zip that holds it; None for a file of its own.
    """

    name: str
    label: str
    archive: zipfile.ZipFile | None = None

    @property
    def path(self) -> str:
        """Path of the picture, through its archive if it lies in one."""
        return self.name if self.archive is None else f"{self.archive.filename}/{self.name}"

    def open(self) -> IO[bytes]:
        """Open the encoded picture.

        Raises:
            OSError: The file cannot be read, or its part of the archive is damaged or encrypted.
        """
        if self.archive is None:
            return open_regular(self.name)
        try:
            return io.BytesIO(self.archive.read(self.name))
        except _ZIP_ERRORS as error:
            raise OSError(f"its part of the archive cannot be read: {error}") from error


@dataclass(frozen=True)
class SampleSet:
    """A labelled data set.

    Attributes:
        samples: Pictures sorted by class, then by name; tables keep their order.
        classes: Class names, sorted. Their positions are the class indices unless a model says
            otherwise.
    """

    samples: tuple[Sample, ...]
    classes: tuple[str, ...]


def read_samples(path: Path) -> SampleSet:
    """List the pictures of a data set; none is opened.

    Args:
        path: A folder `class/*.jpg`, a zip of such a folder under any top folder, or a `.csv` or
            `.jsonl` of path and label, the paths relative to the table.

    Raises:
        DataError: There is no such data set, it holds no picture, or a class is empty.
    """
    with raised_as(DataError, f"The data set {shown(str(path))} cannot be read", "Check the path."):
        exists = path.exists()
    if not exists:
        raise DataError(f"The data set {path} does not exist.", "Check the path.")
    if path.is_dir():
        return _from_folder(path)
    readers = {".zip": _from_zip, ".csv": _from_csv, ".jsonl": _from_jsonl}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is not a data set.", _WANTED)
    wrong = OSError, UnicodeDecodeError, zipfile.BadZipFile, csv.Error
    with raised_as(DataError, f"The data set {path} cannot be read", _WANTED, wrong):
        return reader(path)


def read_pictures(path: Path) -> tuple[Sample, ...]:
    """List the pictures of a data set whose labels do not matter.

    Args:
        path: DATA of `read_samples`, or a folder of pictures without any folder in it.

    Raises:
        DataError: See `read_samples`; or the folder holds both pictures and folders.
    """
    if not path.is_dir():
        return read_samples(path).samples
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if _class_folders(path):
        if files:
            raise DataError(
                f"{path} holds {len(files)} pictures beside its folders, such as {files[0].name}.",
                "Give a folder of pictures, or of class folders, and nothing else in it.",
            )
        return read_samples(path).samples
    if not files:
        raise DataError(f"{path} holds no pictures.", "Give a folder of pictures.")
    return tuple(Sample(str(file), "") for file in files)


def _class_folders(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."]


def _from_folder(folder: Path) -> SampleSet:
    found: dict[str, list[Sample]] = {entry.name: [] for entry in _class_folders(folder)}
    for label, samples in found.items():
        for file in sorted((folder / label).rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                samples.append(Sample(str(file), label))
    return _checked(found, folder)


def _from_zip(path: Path) -> SampleSet:
    with open_regular(path):  # a pipe would be waited for
        archive = zipfile.ZipFile(path)
    found: dict[str, list[Sample]] = {}
    for name in sorted(archive.namelist()):
        inside = PurePosixPath(name)
        if inside.suffix.lower() in SUFFIXES and "__MACOSX" not in inside.parts:
            found.setdefault(inside.parent.name, []).append(
                Sample(name, inside.parent.name, archive)
            )
    return _checked(found, path)


def _from_csv(path: Path) -> SampleSet:
    with open_regular(path) as stream:
        text = io.TextIOWrapper(stream, newline="", encoding="utf-8-sig")
        rows = [row for row in csv.reader(text) if row]
    if rows and [cell.strip().lower() for cell in rows[0]] == ["path", "label"]:
        rows = rows[1:]
    return _from_rows(path, (tuple(row) for row in rows))


def _from_jsonl(path: Path) -> SampleSet:
    return _from_rows(path, _jsonl_rows(path))


def _jsonl_rows(path: Path) -> Iterator[tuple[object, ...]]:
    with open_regular(path) as stream:
        lines = stream.read().decode("utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, "It")
            yield row["path"], row["label"]
        except (ConfigError, TypeError, KeyError) as error:
            raise DataError(
                f"Line {number} of {path} is not an object with path and label: {line[:80]}",
                'Write one {"path": ..., "label": ...} a line.',
            ) from error


def _from_rows(path: Path, rows: Iterable[tuple[object, ...]]) -> SampleSet:
    samples = []
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise DataError(
                f"Row {number} of {path} has {len(row)} column{'s' * (len(row) != 1)}.",
                "Give two: path and label.",
            )
        samples.append(Sample(str(path.parent / str(row[0])), str(row[1]).strip()))
    if not samples:
        raise DataError(f"{path} names no picture.", _WANTED)
    return SampleSet(tuple(samples), tuple(sorted({sample.label for sample in samples})))


def _checked(found: dict[str, list[Sample]], path: Path) -> SampleSet:
    if not any(found.values()):
        raise DataError(f"{path} holds no pictures in class folders.", _WANTED)
    empty = sorted(label for label, samples in found.items() if not samples)
    if empty:
        raise DataError(
            f"{path} has {len(empty)} class folders without a picture: {', '.join(empty[:5])}"
            f"{', ...' if len(empty) > 5 else ''}.",
            "Add pictures to them, or remove these folders.",
        )
    classes = tuple(sorted(found))
    samples = tuple(sample for label in classes for sample in found[label])
    return SampleSet(samples, classes)


_PICTURES = ("bison.jpg", "red_panda.jpg", "koala.jpg", "amagase_dam.jpg")


def sample_pictures() -> tuple[Path, ...]:
    """Paths of four photographs: a bison, a red panda, a koala, a dam.

    They are freely licensed JPEG files; LICENSES.md beside them names the sources.
    """
    return tuple(_pictures_folder() / name for name in _PICTURES)


def sample_photographs() -> SampleSet:
    """All 15 photographs of the package, the sample pictures among them, with their classes."""
    return read_samples(_pictures_folder() / "labels.csv")


def sample_licences() -> Path:
    """Path of the sources and licences of all photographs of the package."""
    return _pictures_folder() / "LICENSES.md"


def _pictures_folder() -> Path:
    return Path(str(resources.files("sacvit_deploy") / "assets" / "pictures"))
