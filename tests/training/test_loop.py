from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sacvit_deploy.errors import CheckpointError, ConfigError, DataError, SacvitDeployError
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoints import Checkpoint, save_checkpoint
from sacvit_deploy.training import loop
from sacvit_deploy.training.config import LossConfig
from sacvit_deploy.training.loop import train
from sacvit_deploy.training.run import set_up
from tests.training.conftest import TINY_CF_LV, TINY_DENSE, TINY_GATED, TINY_LF, tiny_run

_ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = """
import glob, os, pickle, signal, sys
import torch
from sacvit_deploy.training.loop import train
torch.set_num_threads(1)
config, last = pickle.loads(bytes.fromhex(sys.argv[1])), int(sys.argv[2])
def report(share, text):
    if round(share * 12) == last:  # of three epochs of four steps
        os.kill(os.getpid(), signal.SIGKILL)
train(config, report)
if "RANK" in os.environ:
    for thread in glob.glob("/proc/self/task/*/comm"):
        print(open(thread).read())
"""


class InterruptedRunError(Exception):
    """A run that stopped anywhere."""


def interrupt_at(step: int):
    def report(share, text):
        if round(share * 12) == step:  # of three epochs of four steps
            raise InterruptedRunError

    return report


def elsewhere(config, name: str):
    return dataclasses.replace(config, output=config.output.with_name(name))


def changed(config, part: str, **fields):
    return dataclasses.replace(
        config, **{part: dataclasses.replace(getattr(config, part), **fields)}
    )


def weights(config) -> dict[str, torch.Tensor]:
    return Checkpoint.read(config.output / "last.safetensors").weights(config.model)


def metrics(config) -> list[dict[str, float]]:
    text = (config.output / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        line.pop("images_per_s", None)
    return lines


def assert_same_weights(one, other) -> None:
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name


@pytest.fixture(scope="module")
def whole(train_folder, validation_folder, tmp_path_factory):
    """The tiny run from start to end, without an interruption."""
    config = tiny_run(train_folder, validation_folder, tmp_path_factory.mktemp("whole") / "run")
    train(config)
    return config


def test_it_learns_three_colours(quiet_run):
    config = changed(quiet_run, "schedule", epochs=25, checkpoint_every=100)
    config = changed(config, "optimizer", learning_rate=0.5)
    result = train(config)
    assert result.metrics["top1"] >= 0.9
    assert result.metrics["top1_early_exit"] >= 0.9
    assert result.steps == 100
    assert Checkpoint.read(result.checkpoint).config == config.model


def test_what_a_run_leaves(run):
    seen: list[tuple[float, str]] = []
    result = train(run, lambda *progress: seen.append(progress))
    assert [share for share, _ in seen] == [step / 12 for step in range(1, 13)]
    assert seen[-1][1].startswith("loss ")
    assert seen[-1][1].endswith(", 0:00 left")
    assert {path.name for path in run.output.iterdir()} == {
        "best.safetensors",
        "config.json",
        "last.safetensors",
        "metrics.jsonl",
        "run.safetensors",
    }
    lines = metrics(run)
    assert [line["step"] for line in lines if "total" in line] == list(range(1, 13))
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3]
    assert max(line["top1"] for line in lines if "top1" in line) >= result.metrics["top1"]


def test_the_seed_decides(run, whole):
    other = dataclasses.replace(elsewhere(run, "other"), seed=1)
    for config in (run, other):
        train(config)
    assert_same_weights(run, whole)
    assert metrics(run) == metrics(whole)
    assert not torch.equal(weights(run)["head.weight"], weights(other)["head.weight"])


@pytest.mark.parametrize(("step", "every"), [(1, 1), (4, 1), (6, 1), (7, 3), (2, 100)])
def test_an_interrupted_run_ends_the_same(run, whole, step, every):
    stopped = changed(run, "schedule", checkpoint_every=every)
    with pytest.raises(InterruptedRunError):
        train(stopped, interrupt_at(step))
    train(stopped)
    assert_same_weights(stopped, whole)
    assert metrics(stopped) == metrics(whole)


def test_kill_minus_nine(run, whole):
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    killed = subprocess.run(
        [sys.executable, "-c", _SCRIPT, pickle.dumps(run).hex(), "6"],
        env=environment,
        check=False,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (run.output / "last.safetensors.tmp").exists()
    train(run)
    assert_same_weights(run, whole)


def test_a_finished_run_is_measured_again_and_not_changed(run):
    first = train(run)
    before = {path.name: path.read_bytes() for path in run.output.iterdir()}
    assert train(run) == first
    assert {path.name: path.read_bytes() for path in run.output.iterdir()} == before


def test_equal_runs_write_equal_files(run, whole):
    train(run)
    for name in ("run.safetensors", "last.safetensors", "best.safetensors"):
        assert (run.output / name).read_bytes() == (whole.output / name).read_bytes(), name


def test_the_parts_of_a_step_add_up(quiet_run):
    parts = changed(elsewhere(quiet_run, "parts"), "schedule", accumulate=3)
    for config in (quiet_run, parts):
        train(config)
    for name, tensor in weights(quiet_run).items():
        torch.testing.assert_close(tensor, weights(parts)[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_equal_one(quiet_run):
    two = elsewhere(quiet_run, "two")
    train(quiet_run)
    script = quiet_run.output / "script.py"
    script.write_text(_SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [sys.executable, *launcher, str(script), pickle.dumps(two).hex(), "-1"],
        env={**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    # Threads of a process group that outlive the interpreter sometimes abort the process.
    assert finished.stdout.split() == ["python"] * 2
    for name, tensor in weights(quiet_run).items():
        torch.testing.assert_close(tensor, weights(two)[name], rtol=1e-3, atol=1e-4)
    for line, same in zip(metrics(quiet_run), metrics(two), strict=True):
        assert line == pytest.approx(same, rel=1e-3)


def test_clustering_starts_after_the_first_phase(run, monkeypatch):
    phases = []

    def spying(*args):
        started = set_up(*args)
        started.forward.register_forward_pre_hook(lambda module, inputs: phases.append(inputs[1]))
        return started

    monkeypatch.setattr(loop, "set_up", spying)
    train(run)
    assert phases == [True] * 4 + [False] * 8


@pytest.mark.parametrize("model", [TINY_LF, TINY_CF_LV, TINY_GATED], ids=["lf", "cf-lv", "svit"])
def test_other_families_by_the_same_recipe(run, model):
    one = dataclasses.replace(run, model=model)
    other = dataclasses.replace(elsewhere(run, "other"), model=model)
    result = train(one)
    assert {"top1", "kept" if model.gates else "top1_early_exit"} == set(result.metrics)
    with pytest.raises(InterruptedRunError):
        train(other, interrupt_at(6))
    train(other)
    assert_same_weights(one, other)


def test_statistics_of_batch_norm_are_averaged_and_saved(run):
    model = dataclasses.replace(run, model=TINY_CF_LV)
    train(model)
    learned = weights(model)["patch_embed.bn1.running_var"]
    assert (learned != 1).all()


def test_the_dense_baseline_by_the_same_recipe(run):
    result = train(dataclasses.replace(run, model=TINY_DENSE))
    assert set(result.metrics) == {"top1"}


def test_without_validation(run):
    result = train(changed(run, "data", validation=None))
    assert (result.best, result.metrics) == (None, {})


def test_bfloat16(run):
    train(changed(run, "optimizer", precision="bfloat16"))
    assert all(tensor.dtype == torch.float32 for tensor in weights(run).values())


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    path = tmp_path / "teacher.safetensors"
    torch.manual_seed(0)
    save_checkpoint(path, build_model(TINY_DENSE).state_dict(), TINY_DENSE)
    return path


def test_distillation(run, teacher):
    train(dataclasses.replace(run, loss=LossConfig(teacher=teacher)))
    assert all(line["teacher"] > 0 for line in metrics(run) if "total" in line)


def test_a_teacher_of_other_classes(run, teacher):
    other = TINY_DENSE.replace(num_classes=4)
    save_checkpoint(teacher, build_model(other).state_dict(), other)
    with pytest.raises(CheckpointError, match="knows 4 classes"):
        train(dataclasses.replace(run, loss=LossConfig(teacher=teacher)))


def test_a_teacher_in_two_stages(run, teacher):
    save_checkpoint(teacher, build_model(run.model).state_dict(), run.model)
    with pytest.raises(CheckpointError, match="not a dense network"):
        train(dataclasses.replace(run, loss=LossConfig(teacher=teacher)))


def test_start_from_a_dense_checkpoint(run, teacher):
    still = dataclasses.replace(run, init=teacher)
    still = changed(still, "optimizer", learning_rate=1e-12, min_learning_rate=0.0)
    train(still)
    expected = Checkpoint.read(teacher).weights(run.model)
    for name in ("head.weight", "blocks.1.mlp.fc1.weight", "patch_embed.proj.weight"):
        torch.testing.assert_close(weights(still)[name], expected[name])


def test_a_loss_that_is_no_number(run, monkeypatch):
    with pytest.raises(InterruptedRunError):
        train(run, interrupt_at(5))
    saved = (run.output / "run.safetensors").read_bytes()
    monkeypatch.setattr(loop, "smooth_targets", lambda *args: torch.full((6, 3), float("nan")))
    with pytest.raises(SacvitDeployError, match=r"loss of step \d+ is nan") as caught:
        train(run)
    assert str(run.output / "run.safetensors") in caught.value.problem
    assert (run.output / "run.safetensors").read_bytes() == saved


def test_labels_that_do_not_match_the_model(run):
    with pytest.raises(DataError, match="has 3 classes, the model 5"):
        train(dataclasses.replace(run, model=run.model.replace(num_classes=5)))


def test_a_device_that_is_not_there(run):
    with pytest.raises(ConfigError, match="'nonsense' cannot be used"):
        train(dataclasses.replace(run, device="nonsense"))


def test_an_output_that_cannot_be_made(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made"):
        train(dataclasses.replace(run, output=tmp_path / "file" / "run"))
