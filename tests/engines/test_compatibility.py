from __future__ import annotations

import dataclasses
import os
from types import SimpleNamespace

import pytest

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.bundle_changes import publish, staging_folder
from sacvit_deploy.engines import compatibility
from sacvit_deploy.engines.compatibility import checked_plan, mismatches
from sacvit_deploy.engines.machine import Gpu, Machine
from sacvit_deploy.engines.tensorrt_library import Library
from sacvit_deploy.errors import BundleIntegrityError, EngineError, MissingDependencyError
from sacvit_deploy.records import EngineFlags
from tests.fakes import ENGINE

ORIN = Machine("linux-aarch64", "12.6", (Gpu("Orin", "8.7", 8 << 30),))
ADA = Machine("linux-x86_64", "13.0", (Gpu("RTX 4090", "8.9", 24 << 30),))

# A wheel names the CUDA it was made for; where there is none, the driver was asked.
FROM_A_WHEEL = dataclasses.replace(ENGINE, cuda_version="12")
RTX_ENGINE = dataclasses.replace(
    ENGINE,
    runtime="tensorrt-rtx",
    runtime_version="1.7.1.116",
    cuda_version="13",
    compute_capabilities=("8.6", "8.9", "12.0"),
    os="windows-amd64",
)


@pytest.mark.parametrize("version", ["10.3.0", "10.3.0.26"])
def test_an_engine_fits_where_it_was_built(version):
    assert mismatches(ENGINE, ORIN, version) == []


def test_an_rtx_engine_runs_on_all_its_gpus_and_both_systems():
    assert mismatches(RTX_ENGINE, ADA, "1.7.1.116", "13") == []


@pytest.mark.parametrize("multiprocessors", [0, 8, 16])
@pytest.mark.parametrize("compatibility", [None, "same-compute-capability"])
def test_another_board_of_the_same_family_is_noticed(multiprocessors, compatibility):
    built = dataclasses.replace(
        ENGINE,
        gpu="Orin",
        multiprocessors=16,
        flags=EngineFlags(hardware_compatibility=compatibility),
    )
    nano = dataclasses.replace(ORIN, gpus=(Gpu("Orin", "8.7", 8 << 30, multiprocessors),))
    found = mismatches(built, nano, "10.3.0")
    if multiprocessors == 8 and compatibility is None:
        assert found == ["GPU: built on Orin with 16 multiprocessors, here is Orin with 8"]
    else:
        assert found == []
    older = dataclasses.replace(built, gpu="", multiprocessors=0)
    assert mismatches(older, nano, "10.3.0") == []


@pytest.mark.parametrize(
    ("engine", "machine", "version", "cuda", "says"),
    [
        (ENGINE, ORIN, "10.13.2", None, "built with 10.3.0, here is 10.13.2"),
        (ENGINE, ORIN, "10.3.1", None, "belongs to one release, to the last digit"),
        (
            dataclasses.replace(ENGINE, runtime_version="10.13.2.6"),
            ORIN,
            "10.13.2.8",
            None,
            r"built with 10\.13\.2\.6, here is 10\.13\.2\.8",
        ),
        (ENGINE, ORIN, "8.6.2", None, "here is 8.6.2"),
        (RTX_ENGINE, ADA, "1.7.2", "13", "an engine belongs to one release"),
        (
            dataclasses.replace(ENGINE, compute_capabilities=("8.9",)),
            ORIN,
            "10.3.0",
            None,
            r"compute capability: built for 8\.9, here is 8\.7 \(Orin\)",
        ),
        (ENGINE, dataclasses.replace(ORIN, gpus=()), "10.3.0", None, "here is no GPU"),
        (ENGINE, dataclasses.replace(ORIN, os="linux-x86_64"), "10.3.0", None, "operating system"),
        (
            FROM_A_WHEEL,
            dataclasses.replace(ORIN, driver_cuda="11.4"),
            "10.3.0",
            None,
            "the driver here goes up to 11.4",
        ),
        (
            FROM_A_WHEEL,
            dataclasses.replace(ORIN, driver_cuda="13.0"),
            "10.3.0",
            "13",
            "CUDA: built with 12, tensorrt here uses 13",
        ),
        (
            ENGINE,
            dataclasses.replace(ORIN, gpus=(*ORIN.gpus, Gpu("T4", "7.5", 1)), current=1),
            "10.3.0",
            None,
            r"here is 7\.5 \(T4\)",
        ),
    ],
)
def test_one_mismatch_is_one_line(engine, machine, version, cuda, says):
    with pytest.raises(AssertionError, match=says):
        assert mismatches(engine, machine, version, cuda) == []
    assert len(mismatches(engine, machine, version, cuda)) == 1


@pytest.mark.parametrize(("driver", "library"), [("13.0", None), ("13.0", "13"), ("11.4", None)])
def test_the_driver_of_the_machine_that_built_does_not_matter(driver, library):
    """As on a Jetson, whose TensorRT does not say which CUDA it was made for."""
    here = dataclasses.replace(ORIN, driver_cuda=driver)
    assert mismatches(ENGINE, here, "10.3.0", library) == []


def test_a_newer_driver_runs_what_a_wheel_built():
    newer = dataclasses.replace(ORIN, driver_cuda="13.0")
    for library in ("12", None):
        assert mismatches(FROM_A_WHEEL, newer, "10.3.0", library) == []


@pytest.mark.parametrize(
    ("version", "fits"), [("10.3.0", True), ("10.13.2", True), ("10.2.0", False), ("11.0.0", False)]
)
def test_a_version_compatible_engine_loads_in_later_releases(version, fits):
    engine = dataclasses.replace(ENGINE, flags=EngineFlags(version_compatible=True))
    assert (mismatches(engine, ORIN, version) == []) is fits


@pytest.mark.parametrize(("here", "fits"), [("8.0", True), ("12.0", True), ("7.5", False)])
def test_a_hardware_compatible_engine_runs_from_ampere_on(here, fits):
    engine = dataclasses.replace(ENGINE, flags=EngineFlags(hardware_compatibility="ampere-plus"))
    machine = dataclasses.replace(ORIN, gpus=(Gpu("GPU", here, 1),))
    assert (mismatches(engine, machine, "10.3.0") == []) is fits


@pytest.fixture
def built(bundle, monkeypatch) -> Bundle:
    """A bundle with an engine of four bytes, and a TensorRT that must not be given them."""
    module = SimpleNamespace(__version__="10.3.0")
    monkeypatch.setattr(compatibility, "load_library", lambda name: Library(name, module))  # type: ignore[arg-type]
    monkeypatch.setattr(compatibility, "library_cuda", lambda name: None)
    with staging_folder(bundle) as staging:
        (staging / "engines").mkdir()
        (staging / ENGINE.file).write_bytes(b"plan")
        manifest = dataclasses.replace(bundle.manifest, engines=(ENGINE,))
        return publish(bundle, staging, manifest)


def test_a_plan_that_fits_is_read(built):
    plan = checked_plan(built, ENGINE, ORIN)
    assert (plan.entry, plan.library.backend, plan.content) == (ENGINE, "tensorrt", b"plan")


def test_every_mismatch_is_named_at_once_with_the_command(built):
    machine = Machine("linux-x86_64", "11.4", (Gpu("T4", "7.5", 1),))
    with pytest.raises(EngineError) as refused:
        checked_plan(built, FROM_A_WHEEL, machine)
    for part in ("compute capability", "CUDA", "operating system"):
        assert f"\n  {part}: " in refused.value.problem
    assert refused.value.fix.endswith(
        f"build-engine {built.path} --fp16 --runtime tensorrt --batch 1:8:32"
    )


@pytest.mark.parametrize("content", [b"", b"pla", b"plot", b"plan and more"])
def test_a_plan_that_is_not_the_one_that_was_built_is_not_loaded(built, content):
    built.engine_path(ENGINE).write_bytes(content)
    with pytest.raises(BundleIntegrityError, match="SHA-256 is not the one"):
        checked_plan(Bundle.open(built.path), ENGINE, ORIN)


def test_a_plan_that_the_description_does_not_list_is_not_loaded(built):
    stray = dataclasses.replace(ENGINE, file="engines/stray.engine")
    built.engine_path(stray).write_bytes(b"plan")
    with pytest.raises(BundleIntegrityError, match="It is code, and was not loaded"):
        checked_plan(built, stray, ORIN)


def test_a_plan_of_another_size_is_not_even_read(built):
    with built.engine_path(ENGINE).open("wb") as stream:
        stream.truncate(1 << 42)  # more than any memory, and nothing on disk
    with pytest.raises(BundleIntegrityError, match="its size or SHA-256 is not the one"):
        checked_plan(built, ENGINE, ORIN)


def test_a_plan_that_is_a_device_is_not_read(built):
    built.engine_path(ENGINE).unlink()
    built.engine_path(ENGINE).symlink_to(os.devnull)
    with pytest.raises(BundleIntegrityError, match="not a regular file"):
        checked_plan(built, ENGINE, ORIN)


def test_a_missing_plan_is_named(built):
    built.engine_path(ENGINE).unlink()
    with pytest.raises(BundleIntegrityError, match="cannot be read"):
        checked_plan(built, ENGINE, ORIN)


def test_a_library_that_is_not_installed_is_named_first(built, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="tensorrt"):
        checked_plan(built, ENGINE, ORIN)
