"""Does an engine fit this machine? Asked before any of it is given to a library.

A plan file is code that the library runs. Only one whose hash stands in the bundle's description
is read, and every way in which it does not fit is named at once, with the command that mends it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sacvit_deploy.engines.machine import Machine, this_machine
from sacvit_deploy.engines.tensorrt_flavour import library_cuda, load_flavour, version_numbers
from sacvit_deploy.errors import BundleIntegrityError, EngineError

if TYPE_CHECKING:
    from sacvit_deploy.bundle import Bundle, EngineEntry
    from sacvit_deploy.engines.tensorrt_flavour import Flavour


def checked_plan(
    bundle: Bundle, entry: EngineEntry, machine: Machine | None = None
) -> tuple[Flavour, bytes]:
    """The plan of an engine and the library to open it with, once everything fits.

    Args:
        bundle: Where the engine is.
        entry: Which one.
        machine: What to compare with; this machine by default.

    Raises:
        EngineError: The engine was built for another machine, or the library is too old.
        MissingDependencyError: The library is not installed.
        BundleIntegrityError: The file is missing, truncated, or not the one that was built.
    """
    flavour = load_flavour(entry.runtime)
    machine = machine or this_machine()
    found = mismatches(entry, machine, flavour.version, library_cuda(entry.runtime))
    if found:
        raise EngineError(
            f"The engine {entry.file} does not fit this machine:\n"
            + "\n".join(f"  {line}" for line in found),
            f"Build it on this machine: {build_command(bundle, entry)}",
        )
    return flavour, _read(bundle, entry)


def build_command(bundle: Bundle, entry: EngineEntry) -> str:
    """The command that builds an engine like this one for the machine it is run on."""
    batch = ":".join(map(str, entry.batch))
    return (
        f"sacvit-deploy build-engine {bundle.path} --{entry.precision} --runtime {entry.runtime} "
        f"--batch {batch}"
    )


def mismatches(
    entry: EngineEntry, machine: Machine, version: str, cuda: str | None = None
) -> list[str]:
    """Every way in which an engine does not fit, one line each; empty if it fits.

    Args:
        entry: The engine.
        machine: Where it is to run.
        version: Of the installed library of its flavour.
        cuda: Major version that library was compiled for; None if its wheel does not tell.
    """
    lines = (
        _version_mismatch(entry, version),
        _gpu_mismatch(entry, machine),
        _cuda_mismatch(entry, machine, cuda),
        _os_mismatch(entry, machine),
    )
    return [line for line in lines if line]


def _version_mismatch(entry: EngineEntry, version: str) -> str | None:
    built, here = version_numbers(entry.runtime_version), version_numbers(version)
    if entry.flags.get("version_compatible"):
        fits = built[:1] == here[:1] and built[:2] <= here[:2]
        rule = "a version compatible engine loads in the same or a later release of its major one"
    else:
        # Some packages of a library name its build number and some do not.
        fits = built[: len(here)] == here[: len(built)]
        rule = "an engine belongs to one release, to the last digit"
    if fits:
        return None
    return f"{entry.runtime}: built with {entry.runtime_version}, here is {version}; {rule}"


def _gpu_mismatch(entry: EngineEntry, machine: Machine) -> str | None:
    built = ", ".join(entry.compute_capabilities)
    gpu = machine.current_gpu
    if gpu is None:
        return f"GPU: built for compute capability {built}, here is no GPU that CUDA can use"
    if gpu.compute_capability in entry.compute_capabilities:
        return None
    ampere_plus = entry.flags.get("hardware_compatibility") == "ampere-plus"
    if ampere_plus and version_numbers(gpu.compute_capability) >= (8, 0):
        return None
    return f"compute capability: built for {built}, here is {gpu.compute_capability} ({gpu.name})"


def _cuda_mismatch(entry: EngineEntry, machine: Machine, cuda: str | None) -> str | None:
    # A wheel names the major version alone. "12.6" is what the driver had where the engine was
    # built, which says nothing about the library, there or here.
    if not entry.cuda_version.isdigit():
        return None
    built = version_numbers(entry.cuda_version)
    if machine.driver_cuda and version_numbers(machine.driver_cuda)[:1] < built:
        return (
            f"CUDA: built with {entry.cuda_version}, the driver here goes up to "
            f"{machine.driver_cuda}"
        )
    if cuda is not None and version_numbers(cuda) != built:
        return f"CUDA: built with {entry.cuda_version}, {entry.runtime} here uses {cuda}"
    return None


def _os_mismatch(entry: EngineEntry, machine: Machine) -> str | None:
    # NVIDIA documents TensorRT-RTX engines as portable between Windows and Linux.
    if entry.runtime == "tensorrt-rtx" or entry.os == machine.os:
        return None
    return f"operating system: built on {entry.os}, here is {machine.os}"


def _read(bundle: Bundle, entry: EngineEntry) -> bytes:
    """The bytes that were hashed are the bytes that are returned."""
    record = bundle.manifest.files.get(entry.file)
    try:
        content = bundle.engine_path(entry).read_bytes()
    except OSError as error:
        raise BundleIntegrityError(
            f"The engine {entry.file} cannot be read: {error}.",
            f"Build it again: {build_command(bundle, entry)}",
        ) from error
    if record is None or hashlib.sha256(content).hexdigest() != record.sha256:
        raise BundleIntegrityError(
            f"The engine {entry.file} is not the file that was built: its SHA-256 is not the one "
            "in the bundle's description. It is code, and was not loaded.",
            f"Build it again: {build_command(bundle, entry)}",
        )
    return content
