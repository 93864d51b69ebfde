"""The script for machines with a GPU runs here too, as far as there is anything to run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import gpu_check, measure
from benchmarks.contenders import Contender, Settings, Skipped
from sacvit_deploy.runtime.scheduler import Scheduler
from tests.engines.engine_bundles import Workplace
from tests.fakes import DENSE, SAC, fake_sessions, random_images

SMALL = ("--device", "cpu", "--batch", "1,4", "--seconds", "0")


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings("cpu", SAC, DENSE, (1, 4), 0.25, 0.0, tmp_path)


def contender() -> Contender:
    sessions = fake_sessions(SAC, "graph")
    return Contender("fake", "fp32", sessions, fake_sessions(DENSE)["single"])


def test_the_wanted_share_is_hard(settings) -> None:
    rows = list(measure.measured_rows(settings, contender()))
    assert [(row["batch"], row["hand_off"]) for row in rows] == [(1, "host"), (4, "host")]
    assert [row["sac_fraction"] for row in rows] == [round(4 / 17, 4), 0.25]
    for row in rows:
        assert row["repeats"] >= 3
        assert row["speedup"] > 0


@pytest.mark.parametrize("hard", [0, 1, 3, 8])
def test_a_threshold_splits_a_batch_anywhere(hard) -> None:
    scheduler = Scheduler(SAC, fake_sessions(SAC))
    images = random_images(8)
    outcomes = scheduler.run(images, measure.imposed_eta(scheduler, images, hard))
    assert sum(outcome.target_index is not None for outcome in outcomes) == hard


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


def test_the_memory_check_holds_on_the_fake_gpu(tmp_path, monkeypatch) -> None:
    Workplace.make(tmp_path, monkeypatch, SAC)
    found = measure.cuda_memory_check()
    assert found["fresh_memory_is_zero"]
    assert found["recording_runs_nothing"]
    assert found["round_trip_is_equal"]
    assert "MiB left" in found["too_much_memory"]


@pytest.mark.slow
def test_everything_runs_on_a_machine_without_a_gpu(tmp_path, capsys) -> None:
    output = tmp_path / "result.json"
    gpu_check.main([str(output), "--preset", "tiny", *SMALL])
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
