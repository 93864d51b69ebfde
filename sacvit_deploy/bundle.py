"""A bundle on disk: one folder with the graphs, their weights and `bundle.json`.

The offline half (export) writes it, and the online half (runtime) reads it. It appears whole or not
at all, and a hash covers every file. Readers share the lock of the folder, and writers have it to
themselves. A damaged engine does not spoil the rest: it is checked when
it is loaded, and can be built again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
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
from sacvit_deploy.files import (
    FileRecord,
    folder_lock,
    own_folder,
    put_back,
    remove_abandoned,
    swap_in,
    sync,
    write_whole,
)
from sacvit_deploy.manifest import MANIFEST, EngineEntry, ExitCalibration, GraphEntry, Manifest
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
    "Make a bundle of it first: sacvit-deploy export CHECKPOINT -o BUNDLE --preset NAME.",
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
    if not isinstance(path, (str, os.PathLike)):
        raise BundleError(f"The path of a bundle is {shown(path)}.", "Give the path of a folder.")
    folder, tries = Path(path), 0
    while True:
        seen: _Seen = {}
        try:
            with _shared_lock(folder):
                made = make(_read(folder, seen, check_hashes=check_hashes))
                _check_same(folder, seen)
                return made
        except SacvitDeployError:
            tries += 1
            if tries == _TRIES or not (put_back(folder) or _is_changed(seen)):
                raise
        time.sleep(tries * _PAUSE_S)


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


def _read(folder: Path, seen: _Seen, *, check_hashes: bool) -> Bundle:
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


@contextlib.contextmanager
def new_bundle(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Fill a hidden folder, which becomes the bundle when the block ends.

    On any exception, Ctrl-C and SIGTERM included, it is removed and an old bundle stays as it was.

    Args:
        path: Folder of the bundle.
        force: Replace what is there, if it is a bundle or an empty folder.

    Raises:
        BundleError: Something is in the way, the folder cannot be written, or the block ended
            without `write_manifest`.
    """
    # The target of a link is replaced, not the link.
    target = Path(path).resolve()
    check_replaceable(target, force=force)
    with contextlib.ExitStack() as owned:
        with _write_error(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            staging = owned.enter_context(own_folder(target.parent, target.name)) / target.name
            staging.mkdir()
        with _write_error(target):  # the disk may be full by now
            yield staging
        if not (staging / MANIFEST).is_file():
            raise BundleError(
                f"No {MANIFEST} was written for {target}.", "Call write_manifest at the end."
            )
        _put_in_place(staging, target, force=force)


def _put_in_place(staging: Path, target: Path, *, force: bool) -> None:
    with _write_error(target), contextlib.ExitStack() as held:
        sync(staging)
        if target.is_dir():  # nobody else may write to it now
            held.enter_context(folder_lock(target))
        # Again: something may have come there meanwhile.
        check_replaceable(target, force=force)
        swap_in(staging, target)


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Record every file of the folder and write `bundle.json`, as the last step of an export.

    Returns:
        The manifest with `files` filled in.
    """
    files = _records(folder)
    files.pop(MANIFEST, None)
    complete = dataclasses.replace(manifest, files=files)
    _check_covered(complete)
    (folder / MANIFEST).write_bytes(complete.to_json().encode())
    return complete


def _records(folder: Path) -> dict[str, FileRecord]:
    """Records of all files of a folder, by relative name with forward slashes."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): FileRecord.of(file) for file in files}


def update_manifest(bundle: Bundle, manifest: Manifest) -> Bundle:
    """Replace `bundle.json` in one step; nothing is hashed again.

    To change the description on disk, hold the bundle `locked` from reading it to here.

    Raises:
        BundleError: The folder cannot be written.
    """
    _check_covered(manifest)
    with _write_error(bundle.path):
        write_whole(bundle.path / MANIFEST, manifest.to_json())
    return dataclasses.replace(bundle, manifest=manifest)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Bundle]:
    """Read a bundle and keep others from reading or changing it while the block lasts; they wait.

    `BundleError` if it cannot be read.
    """
    with contextlib.ExitStack() as held:
        with _write_error(path):
            put_back(path)
            held.enter_context(folder_lock(path))
            remove_abandoned(path)
        yield _read(path, {}, check_hashes=False)


def check_unchanged(
    current: Bundle, before: Mapping[str, FileRecord], what_was_done: str, fix: str
) -> None:
    """Refuse to add what was made from files that were replaced meanwhile.

    Args:
        current: The bundle as it is now.
        before: Records of the files it was made from.
        what_was_done: What was done with them, such as `built`.
        fix: What to do in that case.

    Raises:
        BundleIntegrityError: A file of `before` is gone or changed.
    """
    files = current.manifest.files
    changed = sorted(name for name, record in before.items() if files.get(name) != record)
    if changed:
        raise BundleIntegrityError(
            f"Bundle {current.path} was changed while it was {what_was_done}: "
            f"{', '.join(changed)}.",
            fix,
        )


@contextlib.contextmanager
def staging_folder(bundle: Bundle) -> Iterator[Path]:
    """Make a hidden folder inside a bundle for new files, and remove it when the block ends.

    SIGTERM ends the block as Ctrl-C does. Folders that a killed process left go, too. `BundleError`
    if the folder cannot be written to or the disk is full.
    """
    with _write_error(bundle.path), own_folder(bundle.path) as staging:
        yield staging


def publish(bundle: Bundle, staging: Path, manifest: Manifest) -> Bundle:
    """Move the files of a `staging_folder` into the bundle, and then write its description.

    The bundle is valid at every moment, a power cut included: files that will be replaced leave the
    description first. While files are moved, and after a failure then, they may be missing.
    Calibrations that were measured with replaced files are dropped.

    Args:
        bundle: The bundle as it is now; hold it `locked`.
        staging: Folder with the new files under their relative names.
        manifest: The new description; its `files` is extended here. Files that it no longer has are
            removed.

    Raises:
        BundleError: The folder cannot be written to.
    """
    with _write_error(bundle.path):
        sync(staging)
        new = _records(staging)
    if new.keys() & bundle.manifest.files.keys():
        update_manifest(bundle, _without(bundle.manifest, new.keys()))
    with _write_error(bundle.path):
        for name in new:
            (bundle.path / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / name, bundle.path / name)
    complete = dataclasses.replace(
        manifest,
        files={**manifest.files, **new},
        exit_calibrations=_calibrations_without(manifest, new.keys()),
    )
    published = update_manifest(bundle, complete)
    for name in bundle.manifest.files.keys() - complete.files.keys():
        # Where it cannot be removed, it only takes up room.
        with contextlib.suppress(OSError):
            (bundle.path / name).unlink()
    return published


def _without(manifest: Manifest, names: AbstractSet[str]) -> Manifest:
    """The description without some files, and without what needs them or was made from them."""
    gone = {(graph.role, graph.precision) for graph in manifest.graphs if names & set(graph.files)}
    return dataclasses.replace(
        manifest,
        files={name: record for name, record in manifest.files.items() if name not in names},
        graphs=tuple(g for g in manifest.graphs if (g.role, g.precision) not in gone),
        engines=tuple(
            engine
            for engine in manifest.engines
            if engine.file not in names and (engine.role, engine.precision) not in gone
        ),
        exit_calibrations=_calibrations_without(manifest, names),
    )


def _calibrations_without(
    manifest: Manifest, names: AbstractSet[str]
) -> tuple[ExitCalibration, ...]:
    """The calibrations that none of some files was measured for.

    A graph counts for every backend: engines are built from it.
    """
    graphs = {graph.precision for graph in manifest.graphs if names & set(graph.files)}
    engines = {(e.precision, e.runtime) for e in manifest.engines if e.file in names}
    return tuple(
        record
        for record in manifest.exit_calibrations
        if record.precision not in graphs and (record.precision, record.runtime) not in engines
    )


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
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise BundleError(
            f"The folder has no {MANIFEST}; it holds {shown or 'nothing'}.",
            "Give a folder written by: sacvit-deploy export.",
        )
    return folder


def _check_files(folder: Path, manifest: Manifest, *, check_hashes: bool) -> None:
    _check_covered(manifest)
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


def _check_covered(manifest: Manifest) -> None:
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


def check_replaceable(target: Path, *, force: bool) -> None:
    """Raise `BundleError` if something is in the way of a new bundle.

    An old bundle that a killed process had moved aside is put back first.
    """
    with _write_error(target):
        put_back(target)
        exists = target.exists()
        is_bundle = (target / MANIFEST).is_file()
        is_empty = target.is_dir() and not any(target.iterdir())
    if exists and not force:
        raise BundleError(
            f"{target} exists.", "Choose another path, or pass --force to replace it."
        )
    if exists and not (is_bundle or is_empty):
        raise BundleError(
            f"{target} exists and is not a bundle, so --force does not replace it.",
            "Choose another path, or remove it yourself.",
        )


def _write_error(target: Path) -> contextlib.AbstractContextManager[None]:
    fix = "Check the permissions of the folder and the space left on the disk."
    return raised_as(BundleError, f"The bundle {target} cannot be written", fix)


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
