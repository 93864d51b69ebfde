"""A bundle on disk, read and checked: one folder with graphs, their weights and `bundle.json`.

The offline half (export) writes it, and the online half (runtime) reads it. A hash covers every
file. Readers share the lock of the folder, and writers have it to themselves. A damaged engine does
not spoil the rest: it is checked when it is loaded, and can be built again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TypeVar

from sacvit_deploy.decode import read_bounded, shown
from sacvit_deploy.errors import (
    BundleError,
    BundleIntegrityError,
    ConfigError,
    SacvitDeployError,
    raised_as,
)
from sacvit_deploy.files import FileRecord, folder_lock, put_back
from sacvit_deploy.manifest import MANIFEST, Manifest
from sacvit_deploy.records import EngineEntry, GraphEntry
from sacvit_deploy.spec import EngineBackend, Precision, Role, external_data

# Engines, each with the log of its build beside it.
ENGINE_FOLDER = "engines"
_CAN_BE_BUILT_AGAIN = (".engine", ".log")

# How often a bundle is read that changes while it is read, and the seconds between two times.
_TRIES, _PAUSE_S = 5, 0.05

Made = TypeVar("Made")

_GIVE_THE_FOLDER = f"Give the folder that holds {MANIFEST}."
_CHECKPOINT = (
    "a checkpoint",
    "Make a bundle of it first: sacvit-deploy export CHECKPOINT -o BUNDLE.",
)
_ARCHIVE = ("an archive", "Unpack it and give the folder.")
# Files that are taken for a bundle, and the fix.
_MISTAKEN = {
    ".onnx": ("one ONNX graph", _GIVE_THE_FOLDER),
    **dict.fromkeys((".safetensors", ".pth", ".pt"), _CHECKPOINT),
    **dict.fromkeys((".zip", ".gz"), _ARCHIVE),
}


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and checked.

    Attributes:
        path: Its folder.
        manifest: Its description.
    """

    path: Path
    manifest: Manifest

    def __repr__(self) -> str:
        graphs = ", ".join(f"{graph.role} {graph.precision}" for graph in self.manifest.graphs)
        return f"<Bundle {str(self.path)!r}: {self.manifest.network}; {graphs}>"

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, check_hashes: bool = True) -> Bundle:
        """Read a bundle and check that it is whole; engines are checked when they are loaded.

        It may be replaced afterwards: to read its files too, see `from_bundle`.

        Args:
            path: The folder.
            check_hashes: Read every file and compare its hash; otherwise only presence and size.

        Raises:
            BundleError: It is not a bundle, or its description is wrong.
            BundleVersionError: It was written by a newer release.
            BundleIntegrityError: A file is missing or changed.
        """
        return from_bundle(path, lambda bundle: bundle, check_hashes=check_hashes)

    @property
    def is_random(self) -> bool:
        """Whether the weights were never trained."""
        return self.manifest.weights.is_random

    def graph(self, role: Role, precision: Precision = "fp32") -> GraphEntry:
        """Find the graph of a role and precision; `BundleError` if there is none."""
        for graph in self.manifest.graphs:
            if (graph.role, graph.precision) == (role, precision):
                return graph
        present = ", ".join(f"{g.role} in {g.precision}" for g in self.manifest.graphs)
        raise BundleError(
            f"Bundle {self.path} has no {role} graph in {precision}; it has {present}.",
            "Ask for one it has, or export with that --precision.",
        )

    def graph_path(self, entry: GraphEntry) -> Path:
        """Path of the file of a graph."""
        return self.path / entry.file

    def engine_graph_path(self, entry: GraphEntry) -> Path:
        """Path of the file that engines of a graph are built from."""
        return self.path / (entry.engine_file or entry.file)

    def engines(
        self,
        role: Role | None = None,
        precision: Precision | None = None,
        runtime: EngineBackend | None = None,
    ) -> tuple[EngineEntry, ...]:
        """Engines in the bundle, of one role, precision or backend if given."""
        return tuple(
            engine
            for engine in self.manifest.engines
            if role in (None, engine.role)
            and precision in (None, engine.precision)
            and runtime in (None, engine.runtime)
        )

    def engine_path(self, entry: EngineEntry) -> Path:
        """Path of the plan file of an engine."""
        return self.path / entry.file

    def linked_weights(self) -> dict[str, Path]:
        """Weights that are links to files of another folder, as in a Hugging Face cache."""
        weights = {name: self.path / name for name in self.manifest.files if name.endswith(".bin")}
        folder = self.path.resolve()
        return {n: f for n, f in weights.items() if not f.resolve().is_relative_to(folder)}

    def graph_files(self) -> dict[str, FileRecord]:
        """Records of all files but the engines and their logs, by name."""
        files = self.manifest.files.items()
        return {name: record for name, record in files if not _can_be_built_again(name)}

    def damaged_engine_files(self) -> dict[str, str]:
        """Find engines and logs that are not as they were written; say how each differs."""
        found = {}
        for name in filter(_can_be_built_again, self.manifest.files):
            try:
                damage = _damage(self.path / name, self.manifest.files[name])
            except OSError as error:
                damage = f"cannot be read: {error}"
            if damage:
                found[name] = damage
        return found


def from_bundle(
    path: str | os.PathLike[str], make: Callable[[Bundle], Made], *, check_hashes: bool = True
) -> Made:
    """Read a bundle and make something from its files, all of them of the same bundle.

    Writers wait until this ends. Where there are no locks, the files are compared afterwards, and
    all is done again if one has changed.

    Args:
        path: The folder.
        make: Called with the bundle; it must not write to it.
        check_hashes: See `Bundle.open`.

    Raises:
        BundleError: See `Bundle.open`.
        SacvitDeployError: `make` failed.
    """
    folder, tries = checked_path(path), 0
    while True:
        seen: _Seen = {}
        try:
            with _shared_lock(folder):
                made = make(read_bundle(folder, seen, check_hashes=check_hashes))
                _check_same(folder, seen)
                return made
        except SacvitDeployError:
            tries += 1
            if tries == _TRIES or not (put_back(folder) or _is_changed(seen)):
                raise
        time.sleep(tries * _PAUSE_S)


def checked_path(path: str | os.PathLike[str]) -> Path:
    """Refuse what no file system can name, and a link to itself, as the path of a bundle."""
    fix = "Give the path of a folder."
    if not isinstance(path, (str, os.PathLike)):
        raise BundleError(f"The path of a bundle is {shown(path)}.", fix)
    known = FileNotFoundError, NotADirectoryError, PermissionError  # reading says more
    problem = f"The path of a bundle is {shown(os.fspath(path))}"
    with raised_as(BundleError, problem, fix, (OSError, ValueError)), contextlib.suppress(*known):
        os.stat(path)
    return Path(path)


@contextlib.contextmanager
def _shared_lock(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        # Where it cannot be opened, reading says why.
        with contextlib.suppress(OSError):
            if folder.is_dir():
                held.enter_context(folder_lock(folder, shared=True))
        yield


# Inode, size and time of change of files; None where there is none.
_Seen = dict[Path, tuple[int, int, int] | None]


def _check_same(folder: Path, seen: _Seen) -> None:
    if _is_changed(seen):
        raise BundleIntegrityError(
            f"Bundle {folder} was changed while it was read.", "Try again when it is complete."
        )


def _is_changed(seen: _Seen) -> bool:
    return any(_identity(file) != before for file, before in seen.items())


def _identity(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_bundle(folder: Path, seen: _Seen, *, check_hashes: bool) -> Bundle:
    """Read and check a bundle; add the files to `seen` before they are read."""
    seen[folder / MANIFEST] = _identity(folder / MANIFEST)
    try:
        manifest = Manifest.from_json(read_bounded(_checked_folder(folder) / MANIFEST))
        seen.update({folder / name: _identity(folder / name) for name in manifest.files})
        _check_files(folder, manifest, check_hashes=check_hashes)
    except (BundleError, ConfigError) as error:
        kind = type(error) if isinstance(error, BundleError) else BundleError
        raise kind(f"Bundle {folder}: {error.problem}", error.fix) from error
    except OSError as error:
        raise BundleError(
            f"Bundle {folder} cannot be read: {error}.", "Check the folder and its permissions."
        ) from error
    return Bundle(folder, manifest)


def _checked_folder(folder: Path) -> Path:
    """Refuse a path that cannot be a bundle, and say what it looks like."""
    if not folder.exists():
        raise BundleError("There is no such folder.", "Check the path, or export a bundle to it.")
    if folder.name == MANIFEST:
        raise BundleError("This is a file of a bundle.", f"Give its folder: {folder.parent}.")
    if not folder.is_dir():
        looks, fix = _MISTAKEN.get(folder.suffix.lower(), ("a file", _GIVE_THE_FOLDER))
        raise BundleError(f"This is {looks}, not a folder.", fix)
    if not (folder / MANIFEST).is_file():
        names = sorted(entry.name for entry in folder.iterdir())
        held = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise BundleError(
            f"The folder has no {MANIFEST}; it holds {held or 'nothing'}.",
            "Give a folder written by: sacvit-deploy export.",
        )
    return folder


def _check_files(folder: Path, manifest: Manifest, *, check_hashes: bool) -> None:
    check_covered(manifest)
    for name, record in manifest.files.items():
        if _can_be_built_again(name):
            continue
        damage = _damage(folder / name, record, check_hashes=check_hashes)
        if damage:
            raise BundleIntegrityError(
                f"The file {name} {damage}.", "Copy the whole folder again, or export again."
            )
    if check_hashes:
        _check_external_data(folder, manifest)


def _check_external_data(folder: Path, manifest: Manifest) -> None:
    """Refuse weights that a graph refers to and no hash covers."""
    for graph in (name for entry in manifest.graphs for name in entry.files):
        for weights in external_data((folder / graph).read_bytes()):
            if (PurePosixPath(graph).parent / weights).as_posix() not in manifest.files:
                raise BundleIntegrityError(
                    f"The graph {graph} refers to {shown(weights)}, which is not among the "
                    "bundle's files.",
                    "Copy the whole folder again, or export again.",
                )


def _can_be_built_again(name: str) -> bool:
    return name.startswith(f"{ENGINE_FOLDER}/") and name.endswith(_CAN_BE_BUILT_AGAIN)


def _damage(file: Path, record: FileRecord, *, check_hashes: bool = True) -> str | None:
    """Say how a file differs from its record, to follow its name in a sentence; None if not."""
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size != record.bytes:
        return f"has {size} bytes; {record.bytes} were written"
    if check_hashes and FileRecord.of(file) != record:
        return "is not the one that was written (its SHA-256 differs)"
    return None


def check_covered(manifest: Manifest) -> None:
    """Refuse a graph or engine that the list of files does not have (`BundleIntegrityError`)."""
    for graph in manifest.graphs:
        for name in graph.files:
            if name not in manifest.files:
                raise BundleIntegrityError(
                    f"The {graph.role} graph {name} is not among the bundle's files.",
                    "Export the bundle again.",
                )
    for engine in manifest.engines:
        if engine.file not in manifest.files:
            raise BundleIntegrityError(
                f"The {engine.role} engine {engine.file} is not among the bundle's files.",
                "Build it again: sacvit-deploy build-engine BUNDLE.",
            )


def build_command(bundle: Bundle, entry: EngineEntry) -> str:
    """Command that builds an engine like this one, for the machine it runs on."""
    batch = ":".join(map(str, entry.batch))
    return (
        f"sacvit-deploy build-engine {bundle.path} --{entry.precision} --runtime {entry.runtime} "
        f"--batch {batch}"
    )


def demo_bundle() -> Path:
    """Path of the small trained SAC-ViT of the package: 50 classes, 64 pixels.

    MODEL_CARD.md in it says more.
    """
    return Path(str(resources.files("sacvit_deploy") / "assets" / "demo_bundle"))
