"""Does an engine fit this machine? Checked before a library reads any of it.

A plan is code that the library runs. It is read only if its hash stands in the bundle's
description. One error names every way in which it does not fit, and the command to build it again.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from sacvit_deploy.bundle import Bundle, build_command
from sacvit_deploy.engines.machine import Gpu, Machine, this_machine
from sacvit_deploy.engines.tensorrt_library import (
    Library,
    library_cuda,
    load_library,
    version_numbers,
)
from sacvit_deploy.errors import BundleIntegrityError, EngineError, raised_as
from sacvit_deploy.files import open_regular
from sacvit_deploy.records import EngineEntry


@dataclass(frozen=True)
class CheckedPlan:
    """A plan that belongs to its bundle and to this machine.

    Attributes:
        entry: Its description in the bundle.
        library: The library that built it.
        content: The bytes that were hashed.
    """

    entry: EngineEntry
    library: Library
    content: bytes


def checked_plan(bundle: Bundle, entry: EngineEntry, machine: Machine | None = None) -> CheckedPlan:
    """Check that an engine of a bundle fits a machine, by default this one, and read its plan.

    Raises:
        EngineError: The engine was built for another machine, or the library is too old.
        MissingDependencyError: The library is not installed.
        BundleIntegrityError: The file is missing, truncated, or not the one that was built.
    """
    library = load_library(entry.runtime)
    machine = machine or this_machine()
    found = mismatches(entry, machine, library.version, library_cuda(entry.runtime))
    if found:
        raise EngineError(
            f"The engine {entry.file} does not fit this machine:\n"
            + "\n".join(f"  {line}" for line in found),
            f"Build it on this machine: {build_command(bundle, entry)}",
        )
    return CheckedPlan(entry, library, _read(bundle, entry))


def mismatches(
    entry: EngineEntry, machine: Machine, version: str, cuda: str | None = None
) -> list[str]:
    """Every way in which an engine does not fit, one line each; empty if it fits.

    `version` is the installed version of its library, and `cuda` the CUDA major version of that;
    None if its wheel does not tell.
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
    if entry.flags.version_compatible:
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
        return _size_mismatch(entry, gpu)
    ampere_plus = entry.flags.hardware_compatibility == "ampere-plus"
    if ampere_plus and version_numbers(gpu.compute_capability) >= (8, 0):
        return None
    return f"compute capability: built for {built}, here is {gpu.compute_capability} ({gpu.name})"


def _size_mismatch(entry: EngineEntry, gpu: Gpu) -> str | None:
    """NVIDIA documents an engine of TensorRT as made for one model of a GPU."""
    sizes = entry.multiprocessors, gpu.multiprocessors
    if entry.flags.hardware_compatibility or 0 in sizes or sizes[0] == sizes[1]:
        return None
    return (
        f"GPU: built on {entry.gpu} with {sizes[0]} multiprocessors, here is {gpu.name} with "
        f"{sizes[1]}"
    )


def _cuda_mismatch(entry: EngineEntry, machine: Machine, cuda: str | None) -> str | None:
    # A wheel names the major version alone. "12.6" is the version of the driver where the engine
    # was built, which says nothing about the library, there or here.
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
    """The bytes of a plan, if they have the hash that the bundle names."""
    fix = f"Build it again: {build_command(bundle, entry)}"
    record = bundle.manifest.files.get(entry.file)
    problem = f"The engine {entry.file} cannot be read"
    with (
        raised_as(BundleIntegrityError, problem, fix),
        open_regular(bundle.engine_path(entry)) as stream,
    ):
        if record is not None and os.fstat(stream.fileno()).st_size == record.bytes:
            content = stream.read()
            if hashlib.sha256(content).hexdigest() == record.sha256:
                return content
    raise BundleIntegrityError(
        f"The engine {entry.file} is not the file that was built: its size or SHA-256 is not the "
        "one in the bundle's description. It is code, and was not loaded.",
        fix,
    )
