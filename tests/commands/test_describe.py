from __future__ import annotations

import dataclasses
from pathlib import Path

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.commands import describe
from sacvit_deploy.evaluation.exit_calibration import BundleCalibration
from sacvit_deploy.evaluation.exit_threshold import ExitGoal, ThresholdSearch, find_threshold
from sacvit_deploy.runtime.result import Result
from tests.evaluation.answers_made_up import population
from tests.evaluation.evaluations import fake_evaluation
from tests.exit_records import exit_record
from tests.fakes import DENSE, ENGINE, SAC, fake_manifest


def words(manifest) -> str:
    return "\n".join(describe.describe_bundle(Bundle(Path("bundle"), manifest)))


def test_a_bundle_names_its_network_graphs_and_origin():
    said = words(fake_manifest(SAC))
    assert said.startswith("bundle   bundle (all files intact)\nnetwork  sac_vit: ")
    assert f"{SAC.num_targets} of {SAC.num_coarse_tokens} tokens refined" in said
    assert "parity   not measured" in said
    assert "stages" not in words(fake_manifest(DENSE))


def test_a_bundle_names_its_calibrations():
    record = exit_record(temperature=1.5)
    manifest = dataclasses.replace(fake_manifest(SAC), exit_calibrations=(record,))
    said = words(manifest)
    assert f"exit     fp32 in onnxruntime: eta {record.eta:.4g}, temperature 1.5 for " in said
    assert f"{record.images} pictures, data {record.data_sha256[:12]}" in said


def test_engines_have_a_size_and_shares():
    small = dataclasses.replace(ENGINE, bytes=2048, precision_share={"half": 0.75, "float": 0.25})
    large = dataclasses.replace(small, bytes=3 << 20)
    first, shares, second, _ = describe.describe_engines([small, large])
    assert "2 KiB in" in first
    assert "3.0 MiB in" in second
    assert shares == "  weights: 75.0% half, 25.0% float"


def test_an_engine_names_the_gpu_it_was_built_on():
    built = dataclasses.replace(ENGINE, gpu="Orin", multiprocessors=16)
    line, *_ = describe.describe_engines([built])
    assert "compute capability 8.7 (Orin, 16 SM)" in line
    line, *_ = describe.describe_engines([ENGINE])
    assert "(" not in line.partition("8.7")[2].split(",")[0]


def result(stage, **fields) -> Result:
    best = ((1, "tabby", 0.5), (0, "lynx", 0.25))
    return Result("a/cat.jpg", 1, "tabby", 0.5, stage, top5=best, **fields)


def test_results_say_where_each_picture_left():
    lines = list(
        describe.describe_results(
            [
                result("early_exit", early_exit_probability=0.5),
                result("refine", early_exit_probability=0.25, target_tokens=(3, 1)),
                result("single", early_exit_probability=None),
            ],
            ["a/cat.jpg", "b/cat.jpg", "cat.jpg"],
        )
    )
    start = "/cat.jpg  tabby   50.0%  "
    assert lines == [
        f"a{start}left at the early exit",
        f"b{start}refined 2 tokens (early exit confidence 25.0%)",
        "cat.jpg    tabby   50.0%  one stage",
    ]


def test_several_classes_of_a_picture():
    line = describe.describe_result(result("single", early_exit_probability=None), "a", top=3)
    assert line == "a  tabby   50.0%, lynx   25.0%  one stage"


def test_an_evaluation_has_a_line_for_each_threshold():
    head, titles, first, second, alone, error, skipped = describe.describe_evaluation(
        fake_evaluation(etas=(0.25, 0.5))
    )
    assert head == "40 pictures of val; bundle in fp32, fake on a <chip>"
    for title in ("top-1", "early"):
        end = titles.index(title) + len(title)
        assert first[end - 1] == second[end - 1] == "%"
    assert first.split()[0] == "0.25"
    assert second.split()[0] == "0.5"
    assert alone.startswith("early exit alone ")
    assert error.startswith("expected calibration error")
    assert skipped == "pictures that could not be read: 1"


def test_an_evaluation_of_one_stage_has_no_threshold():
    lines = list(describe.describe_evaluation(fake_evaluation(DENSE)))
    assert lines[2].split()[0] == lines[2].split()[5] == "-"
    assert not any("second stage alone" in line for line in lines)


def calibrated(goal: ExitGoal, *, written=True, scaled=False) -> list[str]:
    search = ThresholdSearch(goal, temperature_scaling=scaled, resamples=50)
    found = find_threshold(population(100, seed=0), SAC, search)
    return list(
        describe.describe_calibration(BundleCalibration(found, "fp32", "onnxruntime", written))
    )


def test_a_calibration_names_goal_effect_and_intervals():
    lines = calibrated(ExitGoal("target_exit_fraction", 0.5))
    assert "for target_exit_fraction=0.5: fp32 in onnxruntime, 100 pictures" in lines[0]
    assert [line.split()[0] for line in lines[1:5]] == ["top-1", "early", "mean", "latency"]
    assert all(line.count("[") == line.count("]") == 1 for line in lines[1:5])
    assert lines[5:] == ["written to the bundle"]


def test_a_calibration_names_drop_and_temperature():
    lines = calibrated(ExitGoal(value=0.1), written=False, scaled=True)
    assert lines[5].startswith("drop ")
    assert " points [" in lines[5]
    assert lines[6].startswith("temperature ")
    assert lines[7:] == ["dry run: the bundle is unchanged"]
