"""The script for machines with a GPU runs here too, as far as there is anything to run."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import contenders, gpu_check, measure
from benchmarks.contenders import Contender, Settings, Skipped
from sacvit_deploy.engines import build, onnxruntime_providers, registry
from sacvit_deploy.engines.machine import Gpu, Machine
from sacvit_deploy.errors import EngineError, MissingDependencyError
from tests.engines.engine_bundles import Workplace
from tests.engines.fake_cuda import cudaError_t
from tests.fakes import DENSE, SAC, fake_opened, fake_sessions

SMALL = ("--device", "cpu", "--batch", "1,4", "--seconds", "0")
H200 = Machine("linux-x86_64", "13.0", (Gpu("H200", "9.0", 1 << 37),))


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings("cpu", SAC, DENSE, (1, 4), 0.25, 0.0, tmp_path)


def contender() -> Contender:
    sessions = fake_sessions(SAC, "graph")
    return Contender("fake", "fp32", sessions, fake_sessions(DENSE)["single"])


def test_the_wanted_share_is_hard(settings) -> None:
    rows = list(measure.measured_rows(settings, contender()))
    assert [(row["batch"], row["hand_off"]) for row in rows] == [(1, "host"), (4, "host")]
    assert [row["sac_fraction"] for row in rows] == [0.25, 0.25]
    for row in rows:
        assert row["repeats"] >= 3
        assert row["speedup"] > 0


def test_a_section_keeps_what_it_found_before_it_ended(settings) -> None:
    def fails():
        yield contender()
        raise RuntimeError("driver lost")

    def absent():
        raise Skipped("no such thing here")
        yield

    reference = measure.Reference()
    failed = gpu_check.run_section(settings, fails, reference)
    assert (failed["status"], failed["reason"], len(failed["rows"])) == ("failed", "driver lost", 2)
    assert reference.name == "fake fp32"
    assert failed["agreement"][0]["max_refined_logit_error"] == 0
    skipped = gpu_check.run_section(settings, absent, reference)
    assert (skipped["status"], skipped["reason"]) == ("skipped", "no such thing here")


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'onnx_graphsurgeon'"),
        MissingDependencyError("Adding a precision needs onnx.", "Install it."),
    ],
)
def test_a_missing_part_of_the_check_is_a_failure(settings, error) -> None:
    def lacks():
        raise error
        yield

    found = gpu_check.run_section(settings, lacks, measure.Reference())
    assert found["status"] == "failed"
    assert str(error) in found["reason"]
    assert gpu_check.failures({"sections": {"onnxruntime CUDA": found}}) == ["onnxruntime CUDA"]


@pytest.mark.parametrize("given", [(), (Path("two-stage"), Path("dense"))])
@pytest.mark.parametrize("machine", [H200, Machine("linux-x86_64", None, ())])
def test_what_is_missing_is_named_before_the_work(settings, monkeypatch, given, machine) -> None:
    lacking = ("onnx_graphsurgeon", "cuda.bindings")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in lacking else find(name)
    )
    monkeypatch.setattr(gpu_check, "this_machine", lambda: machine)
    found = gpu_check.parts_section(dataclasses.replace(settings, given=given))
    carry = [] if given else ["onnx-graphsurgeon"]
    carry += ["cuda-bindings"] if machine.gpus else []
    assert found.get("carry", []) == carry
    assert found["status"] == ("failed" if carry else "ran")


def test_a_package_that_is_not_there_at_all_is_missing() -> None:
    assert not gpu_check.is_installed("no_such_package.part")
    assert gpu_check.is_installed("numpy")


def odd(*_):
    raise ZeroDivisionError("the driver is odd")


def test_nothing_odd_ends_the_script(settings, tmp_path, monkeypatch) -> None:
    seen = []

    def section():
        seen.append(json.loads((tmp_path / "result.json").read_text()))
        return iter([contender()])

    monkeypatch.setattr(gpu_check, "this_machine", lambda: H200)
    monkeypatch.setattr(gpu_check, "cuda_memory_check", odd)
    monkeypatch.setattr(gpu_check, "torch_sessions", odd)
    monkeypatch.setattr(gpu_check, "sections", lambda _: {"broken": odd, "fake": section})
    gpu_check.run(settings, tmp_path / "result.json")
    document = json.loads((tmp_path / "result.json").read_text())
    for found in (
        document["cuda_memory"], document["torch_reference"], document["sections"]["broken"]
    ):  # fmt: skip
        assert (found["status"], found["reason"]) == ("failed", "the driver is odd")
        assert "ZeroDivisionError" in found["trace"]
    assert document["sections"]["fake"]["status"] == "ran"
    assert document["reference"] == "fake fp32"
    assert seen[0]["cuda_memory"] == document["cuda_memory"]


def test_a_file_that_cannot_be_written_is_noticed_before_the_work(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpu_check, "run", odd)
    with pytest.raises(SystemExit, match="cannot be written"):
        gpu_check.main([str(tmp_path / "none" / "result.json"), "--preset", "tiny", *SMALL])


def test_versions_are_found_however_a_wheel_writes_its_name(monkeypatch) -> None:
    names = {"tensorrt_rtx": "1.7", "Tensorrt.CU12": "10.3", None: "0", "another": "1"}
    wheels = [SimpleNamespace(metadata={"Name": n}, version=v) for n, v in names.items()]
    monkeypatch.setattr(metadata, "distributions", lambda: wheels)
    found = gpu_check.versions()
    assert found.pop("python")
    assert found == {"tensorrt-rtx": "1.7", "tensorrt-cu12": "10.3"}


def of_cuda(settings):
    bundles = SimpleNamespace(get=lambda _: (None, None))
    return gpu_check.run_section(
        settings,
        lambda: contenders.onnxruntime_contenders(bundles, "CUDA", ("fp32",)),  # type: ignore[arg-type]
        measure.Reference(),
    )


def test_a_provider_that_is_offered_and_not_obtained_is_a_failure(settings, monkeypatch) -> None:
    offered = [onnxruntime_providers.CUDA, onnxruntime_providers.CPU]
    monkeypatch.setattr(onnxruntime_providers, "available_providers", lambda _: offered)
    monkeypatch.setattr(registry, "open_sessions", lambda *_, **__: fake_opened(SAC))
    monkeypatch.setattr(contenders, "this_machine", lambda: Machine("linux-x86_64", None, ()))
    found = of_cuda(settings)
    assert (found["status"], found["reason"]) == ("skipped", "there is no GPU")
    monkeypatch.setattr(contenders, "this_machine", lambda: H200)
    found = of_cuda(settings)
    assert found["status"] == "failed"
    assert "CUDA is offered, and FakeProvider was obtained" in found["reason"]
    monkeypatch.setattr(onnxruntime_providers, "available_providers", lambda _: offered[1:])
    found = of_cuda(settings)
    assert found["status"] == "skipped"
    assert "onnxruntime-gpu has it" in found["reason"]


def test_a_gpu_that_a_library_does_not_build_for_is_no_failure(monkeypatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    for module in (contenders, build):
        monkeypatch.setattr(module, "this_machine", lambda: H200)
    with pytest.raises(Skipped, match=r"does not build for compute capability 9\.0; it knows 8"):
        contenders.check_target("tensorrt-rtx")
    monkeypatch.setattr(contenders, "this_machine", lambda: Machine("linux-x86_64", None, ()))
    with pytest.raises(Skipped, match="no GPU"):
        contenders.check_target("tensorrt-rtx")


def test_a_library_that_is_not_installed_is_no_failure(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(contenders, "this_machine", lambda: H200)
    with pytest.raises(Skipped, match="needs tensorrt, which is not installed"):
        contenders.check_target("tensorrt")
    with pytest.raises(Skipped, match="needs tensorrt, which is not installed"):
        contenders.check_offered("Tensorrt")


def test_a_row_says_whether_it_was_recorded(monkeypatch) -> None:
    asked = []

    def opened(*_, options, **__):
        asked.append(options.cuda_graphs)
        found = fake_opened(SAC if len(asked) % 2 else DENSE)
        fakes: list[Any] = list(found.sessions.values())
        for session in fakes:
            session.provider, session.records = "CUDAExecutionProvider", options.cuda_graphs
        return found

    monkeypatch.setattr(registry, "open_sessions", opened)
    monkeypatch.setattr(contenders, "check_offered", lambda _: None)
    bundles: Any = SimpleNamespace(get=lambda _: (None, None))
    found = list(contenders.onnxruntime_contenders(bundles, "CUDA", ("fp32",)))
    assert asked == [True, True, False, False]
    assert [each.cuda_graphs for each in found] == [True, False]


def test_the_memory_check_holds_on_the_fake_gpu(tmp_path, monkeypatch) -> None:
    Workplace.make(tmp_path, monkeypatch, SAC)
    found = measure.cuda_memory_check()
    assert found["fresh_memory_is_zero"]
    assert found["recording_runs_nothing"]
    assert found["round_trip_is_equal"]
    assert "MiB left" in found["too_much_memory"]


def test_the_first_thing_is_to_allocate(tmp_path, monkeypatch) -> None:
    workplace = Workplace.make(tmp_path, monkeypatch, SAC)
    assert "cuda_bindings" in measure.cuda_malloc_check()
    workplace.gpu.fail["cudaMalloc"] = cudaError_t.cudaErrorInvalidValue
    monkeypatch.setattr(gpu_check, "this_machine", lambda: H200)
    found = gpu_check.on_gpu(measure.cuda_malloc_check)
    assert found["status"] == "failed"
    assert "cannot use this GPU. CUDA failed in cudaMalloc" in found["reason"]
    assert "--backend onnxruntime" in found["reason"]


class SteadyMeter:
    """A board that always takes as much."""

    rails = ("VDD_IN",)

    def mean_w(self, start, end) -> float:
        assert end > start
        return 6.0

    def idle_w(self, seconds) -> float | None:
        return 4.0


def test_a_meter_gives_the_energy_of_a_picture(settings) -> None:
    measured = dataclasses.replace(settings, power=SteadyMeter(), batches=(4,))
    (row,) = measure.measured_rows(measured, contender())
    assert row["two_stage_w"] == row["dense_w"] == 6
    assert 0 < row["dense_mj_per_image"] < row["dense_ms_p50"] / 4 * 6 * 100
    found = gpu_check.power_section(measured)
    assert found == {"status": "ran", "rails": ("VDD_IN",), "idle_w": 4.0}
    assert gpu_check.power_section(settings)["status"] == "skipped"


def test_a_meter_that_reads_nothing_is_a_failure(settings, monkeypatch) -> None:
    monkeypatch.setattr(SteadyMeter, "idle_w", lambda *_: None)
    measured = dataclasses.replace(settings, power=SteadyMeter())
    assert gpu_check.power_section(measured)["status"] == "failed"


@pytest.mark.slow
def test_everything_runs_on_a_machine_without_a_gpu(tmp_path, capsys) -> None:
    output = tmp_path / "result.json"
    assert gpu_check.main([str(output), "--preset", "tiny", *SMALL]) == 0
    document = json.loads(output.read_text())
    assert document["reference"] == "torch cpu fp32"
    statuses = {name: section["status"] for name, section in document["sections"].items()}
    assert statuses["torch"] == statuses["onnxruntime CPU"] == "ran"
    assert set(statuses.values()) <= {"ran", "skipped"}
    (found,) = document["sections"]["torch"]["agreement"]
    assert found["hand_off_max_difference"] == 0
    (found,) = document["sections"]["onnxruntime CPU"]["agreement"]
    assert (found["label_agreement"], found["target_overlap"]) == (1, 1)
    assert found["max_logit_error"] < 1e-4 * found["logit_scale"]
    ways = [row["hand_off"] for row in document["sections"]["torch"]["rows"]]
    assert np.unique(ways).tolist() == ["device", "host"]
    assert "onnxruntime CPU: ran" in capsys.readouterr().out


def test_given_bundles_need_no_torch(tmp_path, other_graph, dense_bundle) -> None:
    output = tmp_path / "result.json"
    given = [str(other_graph.path), str(dense_bundle.path)]
    gpu_check.main([str(output), "--bundles", *given, *SMALL])
    sections = json.loads(output.read_text())["sections"]
    assert sections["torch"]["status"] == "skipped"
    assert len(sections["onnxruntime CPU"]["rows"]) == 2


def test_bundles_that_leave_the_choice_to_the_host_are_refused(sac_host, dense_bundle) -> None:
    given = [str(sac_host.path), str(dense_bundle.path)]
    with pytest.raises(SystemExit, match="--selection graph"):
        gpu_check.main(["result.json", "--bundles", *given])


def test_the_tests_of_engine_sessions_say_why_they_did_not_run() -> None:
    if gpu_check.has_gpu():
        pytest.skip("they run here")
    with pytest.raises(Skipped, match="needs an NVIDIA GPU"):
        measure.engine_sessions_check()


@pytest.mark.parametrize(
    ("code", "output", "says"),
    [
        (0, "....\n4 passed in 3s", {"tests": "4 passed in 3s", "notes": []}),
        (
            1,
            "F...\nFAILED t.py::test_a - x\n1 failed, 3 passed",
            r"FAILED t\.py::test_a.*\n1 failed",
        ),
        (1, "", "No module named pytest"),
    ],
)
def test_what_the_tests_of_engine_sessions_found(monkeypatch, code, output, says) -> None:
    errors = "" if output else "python: No module named pytest\n"
    ran = SimpleNamespace(returncode=code, stdout=output, stderr=errors)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: ran)
    if code:
        with pytest.raises(EngineError, match=says):
            measure.engine_sessions_check()
    else:
        assert measure.engine_sessions_check() == says
