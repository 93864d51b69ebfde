"""A bundle on disk: one folder with the graphs, their weights and `bundle.json`.

The folder is where the offline half (export) and the online half (runtime) meet. It appears whole
or not at all, and every file in it is covered by a hash. An engine that is damaged does not spoil
the rest: it is checked when it is loaded, and can be built again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from sacvit_deploy.errors import BundleError, BundleIntegrityError
from sacvit_deploy.files import (
    FileRecord,
    folder_lock,
    own_folder,
    swap_in,
    sync,
    terminated_like_ctrl_c,
    write_whole,
)
from sacvit_deploy.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from sacvit_deploy.manifest import EngineEntry, ExitCalibration, GraphEntry
    from sacvit_deploy.spec import EngineBackend, Precision, Role


# Engines, and beside each what was said while it was built.
ENGINE_FOLDER = "engines"
_CAN_BE_BUILT_AGAIN = (".engine", ".log")


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
        """Read a bundle and check that it is whole, but for what stands in its engine folder.

        Args:
            path: The folder.
            check_hashes: Read every file and compare its hash; otherwise only presence and size.

        Raises:
            BundleError: It is not a bundle, or its description is wrong.
            BundleVersionError: It was written by a newer release.
            BundleIntegrityError: A file is missing or changed.
        """
        folder = Path(path)
        try:
            text = (_checked_folder(folder) / MANIFEST).read_bytes()
            manifest = Manifest.from_json(text)
            _check_files(folder, manifest, check_hashes=check_hashes)
        except BundleError as error:
            raise type(error)(f"Bundle {folder}: {error.problem}", error.fix) from error
        except OSError as error:
            raise BundleError(
                f"Bundle {folder} cannot be read: {error}.", "Check the folder and its permissions."
            ) from error
        return cls(folder, manifest)

    @property
    def is_random(self) -> bool:
        """Whether the weights were never trained."""
        return self.manifest.weights.is_random

    def graph(self, role: Role, precision: Precision = "fp32") -> GraphEntry:
        """The graph of that role and precision.

        Raises:
            BundleError: The bundle has none.
        """
        for graph in self.manifest.graphs:
            if (graph.role, graph.precision) == (role, precision):
                return graph
        present = ", ".join(f"{g.role} in {g.precision}" for g in self.manifest.graphs)
        raise BundleError(
            f"Bundle {self.path} has no {role} graph in {precision}; it has {present}.",
            "Ask for one it has, or export with that --precision.",
        )

    def graph_path(self, entry: GraphEntry) -> Path:
        """Where the file of a graph is."""
        return self.path / entry.file

    def engine_graph_path(self, entry: GraphEntry) -> Path:
        """Where the file is that engines of a graph are built from."""
        return self.path / (entry.engine_file or entry.file)

    def engines(
        self,
        role: Role | None = None,
        precision: Precision | None = None,
        runtime: EngineBackend | None = None,
    ) -> tuple[EngineEntry, ...]:
        """The engines that were built, only those of that role, precision and runtime if given."""
        wanted = (role, precision, runtime)
        return tuple(
            engine
            for engine in self.manifest.engines
            if all(
                ask in (None, found)
                for ask, found in zip(
                    wanted, (engine.role, engine.precision, engine.runtime), strict=True
                )
            )
        )

    def engine_path(self, entry: EngineEntry) -> Path:
        """Where the plan file of an engine is."""
        return self.path / entry.file

    def graph_files(self) -> dict[str, FileRecord]:
        """All files but the engines and their logs."""
        files = self.manifest.files.items()
        return {name: record for name, record in files if not _can_be_built_again(name)}

    def damaged_engine_files(self) -> dict[str, str]:
        """Engines and their logs that are not as they were written, and how each differs."""
        found = {}
        for name, record in self.manifest.files.items():
            if _can_be_built_again(name):
                try:
                    damage = _damage(self.path / name, record)
                except OSError as error:
                    damage = f"cannot be read: {error}"
                if damage:
                    found[name] = damage
        return found


@contextlib.contextmanager
def new_bundle(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """A hidden folder to fill, which becomes the bundle when the block ends without an error.

    On any exception, Ctrl-C and SIGTERM included, the hidden folder goes and an old bundle stays as
    it was.

    Args:
        path: Where the bundle is to appear.
        force: Replace what is there, if it is a bundle or an empty folder.

    Raises:
        BundleError: Something is in the way, the folder cannot be written, or the block ended
            without `write_manifest`.
    """
    # A link to a folder is followed: what it names is replaced, not the link.
    target = Path(path).resolve()
    check_replaceable(target, force=force)
    staging = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    with terminated_like_ctrl_c():
        try:
            with _told_as_bundle_error(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                staging.mkdir()
            yield staging
            if not (staging / MANIFEST).is_file():
                raise BundleError(
                    f"No {MANIFEST} was written for {target}.", "Call write_manifest at the end."
                )
            _put_in_place(staging, target, force=force)
        finally:
            if staging.exists():
                shutil.rmtree(staging)


def _put_in_place(staging: Path, target: Path, *, force: bool) -> None:
    with _told_as_bundle_error(target), contextlib.ExitStack() as held:
        sync(staging)
        if target.is_dir():  # nobody is to be writing to what is replaced
            held.enter_context(folder_lock(target))
        # Again, for what came there while the block was at work.
        check_replaceable(target, force=force)
        swap_in(staging, target)


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Record every file of the folder and write `bundle.json`, as the last step of an export.

    Returns:
        The manifest with `files` filled in.
    """
    files = {
        file.relative_to(folder).as_posix(): FileRecord.of(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }
    complete = dataclasses.replace(manifest, files=files)
    _check_covered(complete)
    (folder / MANIFEST).write_text(complete.to_json(), encoding="utf-8")
    return complete


def update_manifest(bundle: Bundle, manifest: Manifest) -> Bundle:
    """Replace `bundle.json` in one step; nothing is hashed again.

    For a description that was made from the one on disk, hold the bundle `locked` from reading
    to here.

    Raises:
        BundleError: The folder cannot be written.
    """
    _check_covered(manifest)
    with _told_as_bundle_error(bundle.path):
        write_whole(bundle.path / MANIFEST, manifest.to_json())
    return dataclasses.replace(bundle, manifest=manifest)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Bundle]:
    """A bundle as it is now, which nobody else changes while the block lasts; a second one waits.

    Raises:
        BundleError: It cannot be read.
    """
    with contextlib.ExitStack() as held:
        with _told_as_bundle_error(path):
            held.enter_context(folder_lock(path))
        yield Bundle.open(path, check_hashes=False)


def check_unchanged(
    current: Bundle, before: Mapping[str, FileRecord], what_was_done: str, fix: str
) -> None:
    """Refuse to add what rests on files that were replaced meanwhile; new ones are no matter.

    Raises:
        BundleIntegrityError: A file of `before` is gone, or another.
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
    """A hidden folder inside a bundle to write new files to; gone when the block ends.

    SIGTERM ends the block as Ctrl-C does. What a killed process left goes here, too.

    Raises:
        BundleError: The folder cannot be written to, or the disk is full.
    """
    with _told_as_bundle_error(bundle.path), own_folder(bundle.path) as staging:
        yield staging


def publish(bundle: Bundle, staging: Path, manifest: Manifest) -> Bundle:
    """Move the files of a `staging_folder` into the bundle, and then write its description.

    The bundle is valid at every moment, a power cut included: what is about to be replaced leaves
    the description first, and what a calibration found with replaced files leaves for good. While
    files are being moved, and after a failure then, what was to be replaced may be missing.

    Args:
        bundle: As it is now; hold it `locked`.
        staging: Holds the new files at the relative names they are to have.
        manifest: The new description; its `files` is extended here. A file that it has no more is
            removed from the folder.

    Raises:
        BundleError: The folder cannot be written to.
    """
    with _told_as_bundle_error(bundle.path):
        sync(staging)
        new = {
            file.relative_to(staging).as_posix(): FileRecord.of(file)
            for file in sorted(staging.rglob("*"))
            if file.is_file()
        }
    if new.keys() & bundle.manifest.files.keys():
        update_manifest(bundle, _without(bundle.manifest, new.keys()))
    with _told_as_bundle_error(bundle.path):
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
        # Nothing names it any more: where it cannot be removed, it only takes up room.
        with contextlib.suppress(OSError):
            (bundle.path / name).unlink()
    return published


def _without(manifest: Manifest, names: AbstractSet[str]) -> Manifest:
    """The description without some files, and without what needs them or was built from them."""
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
    """The calibrations that were not measured with any of some files.

    A graph counts for every runtime: engines are built from it.
    """
    graphs = {graph.precision for graph in manifest.graphs if names & set(graph.files)}
    engines = {(e.precision, e.runtime) for e in manifest.engines if e.file in names}
    return tuple(
        record
        for record in manifest.exit_calibrations
        if record.precision not in graphs and (record.precision, record.runtime) not in engines
    )


def _checked_folder(folder: Path) -> Path:
    """The folder, if it can be a bundle; else an error that says what it looks like."""
    if not folder.exists():
        raise BundleError("There is no such folder.", "Check the path, or export a bundle to it.")
    if folder.name == MANIFEST:
        raise BundleError("This is a file of a bundle.", f"Give its folder: {folder.parent}.")
    if not folder.is_dir():
        raise BundleError(f"This is {_looks_like(folder)}, not a folder.", _what_to_give(folder))
    if not (folder / MANIFEST).is_file():
        names = sorted(entry.name for entry in folder.iterdir())
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise BundleError(
            f"The folder has no {MANIFEST}; it holds {shown or 'nothing'}.",
            "Give a folder written by: sacvit-deploy export.",
        )
    return folder


def _looks_like(file: Path) -> str:
    known = {
        ".onnx": "one ONNX graph",
        ".safetensors": "a checkpoint",
        ".pth": "a checkpoint",
        ".pt": "a checkpoint",
        ".zip": "an archive",
        ".gz": "an archive",
    }
    return known.get(file.suffix.lower(), "a file")


def _what_to_give(file: Path) -> str:
    looks = _looks_like(file)
    if looks == "a checkpoint":
        return "Make a bundle of it first: sacvit-deploy export CHECKPOINT -o BUNDLE --preset NAME."
    if looks == "an archive":
        return "Unpack it and give the folder."
    return f"Give the folder that holds {MANIFEST}."


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


def _can_be_built_again(name: str) -> bool:
    return name.startswith(f"{ENGINE_FOLDER}/") and name.endswith(_CAN_BE_BUILT_AGAIN)


def _damage(file: Path, record: FileRecord, *, check_hashes: bool = True) -> str | None:
    """How a file differs from what was written, to follow its name in a sentence; None if not."""
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
    """Refuse what `new_bundle` would refuse, before any work is done.

    Raises:
        BundleError: Something is in the way.
    """
    with _told_as_bundle_error(target):
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


@contextlib.contextmanager
def _told_as_bundle_error(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"The bundle {target} cannot be written: {error}.",
            "Check the permissions of the folder and the space left on the disk.",
        ) from error


def build_command(bundle: Bundle, entry: EngineEntry) -> str:
    """The command that builds an engine like this one for the machine it is run on."""
    batch = ":".join(map(str, entry.batch))
    return (
        f"sacvit-deploy build-engine {bundle.path} --{entry.precision} --runtime {entry.runtime} "
        f"--batch {batch}"
    )


def demo_bundle() -> Path:
    """The small trained SAC-ViT that ships with the package; MODEL_CARD.md in it says more.

    Returns:
        Path of its bundle, 50 classes at 64 pixels.
    """
    return Path(str(resources.files("sacvit_deploy") / "assets" / "demo_bundle"))
