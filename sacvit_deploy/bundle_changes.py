"""Changes of a bundle on disk: a new one, a new description, more files.

A bundle appears whole or not at all, and is valid at every moment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from sacvit_deploy.bundle import Bundle, check_covered, checked_path, read_bundle
from sacvit_deploy.errors import BundleError, BundleIntegrityError, raised_as
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
from sacvit_deploy.manifest import MANIFEST, Manifest
from sacvit_deploy.records import ExitCalibration


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
    target = checked_path(path).resolve()
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
    check_covered(complete)
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
    check_covered(manifest)
    with _write_error(bundle.path):
        # In a cache of Hugging Face it is a link to a file that belongs to other folders, too.
        write_whole(bundle.path / MANIFEST, manifest.to_json(), follow_link=False)
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
        yield read_bundle(path, {}, check_hashes=False)


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
