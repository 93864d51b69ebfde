from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from sacvit_deploy.errors import ConfigError, MissingDependencyError
from sacvit_deploy.evaluation.exit_calibration import BundleCalibration
from sacvit_deploy.evaluation.exit_threshold import ExitGoal, ThresholdSearch, find_threshold
from sacvit_deploy.visualize import charts
from sacvit_deploy.visualize.charts import check_plot_file, write_exit_curve
from tests.evaluation.answers_made_up import population
from tests.fakes import SAC


@pytest.fixture
def without_matplotlib(monkeypatch):
    """What is checked before the library is needed."""
    monkeypatch.setattr(charts, "require", lambda module, purpose: ModuleType(module))


def calibrated(goal: ExitGoal) -> BundleCalibration:
    found = find_threshold(population(300, seed=1), SAC, ThresholdSearch(goal, resamples=100))
    return BundleCalibration(found, "fp32", "onnxruntime", written=False)


@pytest.mark.parametrize(
    ("goal", "limit"),
    [
        (ExitGoal(value=0.02), "least top-1: "),
        (ExitGoal("target_macs", 1.0), "largest mean cost: 1 G"),
        (ExitGoal("target_exit_fraction", 0.6), "60% leave early"),
        (ExitGoal("target_latency_ms", 5), None),
    ],
    ids=str,
)
def test_everything_is_in_the_picture(goal, limit, tmp_path):
    matplotlib = pytest.importorskip("matplotlib", reason="needs matplotlib, from the extra viz")
    found = calibrated(goal)
    file = tmp_path / "curve.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        write_exit_curve(found, file)
    text = file.read_text(encoding="utf-8")
    chosen = found.calibration.chosen
    for part in (
        f"Exit threshold for {goal}",
        "fp32 in onnxruntime, 300 pictures",
        "mean cost of a picture",
        "top-1 (%)",
        f"eta {chosen.eta:.3f}: {chosen.top1:.1%}",
        "95 % interval",
        "second stage always",
        limit or "first stage alone",
    ):
        assert part in text


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_same_calibration_gives_the_same_file(suffix, start, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib, from the extra viz")
    found = calibrated(ExitGoal(value=0.02))
    files = [tmp_path / f"{name}{suffix}" for name in ("one", "two")]
    for file in files:
        write_exit_curve(found, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes().startswith(start)


def test_a_file_that_cannot_be_written_is_found_before_the_work(without_matplotlib, tmp_path):
    for file in (tmp_path / "none" / "curve.png", Path("/proc/curve.svg")):
        with pytest.raises(ConfigError, match="cannot be written"):
            check_plot_file(file)


def test_the_check_leaves_nothing_and_changes_nothing(without_matplotlib, tmp_path):
    check_plot_file(tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.svg").write_text("old")
    check_plot_file(tmp_path / "old.svg")
    assert (tmp_path / "old.svg").read_text() == "old"


def test_only_two_kinds_of_file(without_matplotlib):
    with pytest.raises(ConfigError, match=r"\.png or \.svg"):
        check_plot_file(Path("curve.jpg"))


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingDependencyError, match=r"sacvit-deploy\[viz\]"):
        check_plot_file(tmp_path / "curve.png")
