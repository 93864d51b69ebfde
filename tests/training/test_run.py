from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import pytest
import torch

from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.model.build import build_model
from sacvit_deploy.training.optimizer import update_average
from sacvit_deploy.training.run import RunState, config_digest, load_run, save_run


def fresh(run, seed: int) -> RunState:
    torch.manual_seed(seed)
    return RunState.fresh(build_model(run.model), run.optimizer)


def advance(state: RunState) -> None:
    image = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    out = state.model(image)
    (out.refined_logits.square().sum() + out.early_exit.logits.square().sum()).backward()
    state.optimizer.step()
    update_average(state.average, state.model.state_dict(), 0.5, state.step)
    state.step += 1


def test_a_saved_run_goes_on_the_same(run, tmp_path):
    state, other = fresh(run, 0), fresh(run, 1)
    advance(state)
    state.best = 0.25
    save_run(tmp_path / "run.safetensors", state, run)
    load_run(tmp_path / "run.safetensors", other, run)
    assert (other.step, other.best) == (1, 0.25)
    for each in (state, other):
        each.optimizer.zero_grad()
        advance(each)
    for name, tensor in state.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name
        assert torch.equal(state.average[name], other.average[name]), name


def test_the_average_is_a_copy(run):
    state = fresh(run, 0)
    before = state.model.state_dict()["head.weight"].clone()
    update_average(state.average, {k: v + 1 for k, v in state.average.items()}, 0.5, step=1000)
    assert torch.equal(state.model.state_dict()["head.weight"], before)
    torch.testing.assert_close(state.average["head.weight"], before + 0.5)


def test_a_full_disk_leaves_the_last_good_run(run, tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    state = fresh(run, 0)
    save_run(path, state, run)
    before = path.read_bytes()

    def full(tensors, target, metadata):
        target.write_bytes(b"half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sacvit_deploy.training.run.save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_run(path, state, run)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_another_recipe_is_refused(run, tmp_path):
    path = tmp_path / "run.safetensors"
    save_run(path, fresh(run, 0), run)
    with pytest.raises(CheckpointError, match="another configuration"):
        load_run(path, fresh(run, 0), dataclasses.replace(run, seed=1))


def test_a_broken_file(run, tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_run(path, fresh(run, 0), run)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe(run, tmp_path):
    os.mkfifo(tmp_path / "run.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_run(tmp_path / "run.safetensors", fresh(run, 0), run)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"model.head.bias", b"model.head.bjas"),
        (b"average.head.bias", b"average.head.bjas"),
        (b"optimizer.3.exp_avg_sq", b"optimizer.3.exp_avg_sr"),
        (b"optimizer.3.step", b"optimizer.9.step"),
        (b'\\"step\\": 1,', b'\\"step\\":"1",'),
        (b'{\\"step\\": 1,', b"[" * 13),
        (b'\\"best\\": null', b'\\"best\\": NaN'),
        (b'"shape":[16,16]', b'"shape":[256,1]'),
    ],
)
def test_a_changed_header(run, tmp_path, old, new):
    path, state = tmp_path / "run.safetensors", fresh(run, 0)
    advance(state)
    save_run(path, state, run)
    data = path.read_bytes()
    assert old in data
    changed = data.replace(old, new.ljust(len(old)))
    header = len(data) + int.from_bytes(data[:8], "little") - len(changed)
    path.write_bytes(header.to_bytes(8, "little") + changed[8:])
    with pytest.raises(CheckpointError) as caught:
        load_run(path, fresh(run, 0), run)
    assert len(str(caught.value)) < 2000


def test_only_what_decides_the_result_counts(run, tmp_path):
    moved = dataclasses.replace(
        run,
        output=tmp_path / "elsewhere",
        data=dataclasses.replace(run.data, workers=3),
        schedule=dataclasses.replace(run.schedule, log_every=7),
    )
    assert config_digest(moved) == config_digest(run)
    longer = dataclasses.replace(run, schedule=dataclasses.replace(run.schedule, epochs=9))
    assert config_digest(longer) != config_digest(run)


def test_a_path_counts_by_what_it_names(run, tmp_path, monkeypatch):
    """A run started with `run.toml` goes on as `/the/folder/run.toml`."""
    link = tmp_path / "link"
    link.symlink_to(run.data.train)
    monkeypatch.chdir(run.data.train.parent)
    weights, teacher = tmp_path / "weights.pth", tmp_path / "teacher.pth"
    known = dataclasses.replace(
        run, init=weights, loss=dataclasses.replace(run.loss, teacher=teacher)
    )
    for train in (Path(run.data.train.name), Path(".") / ".." / run.data.train.resolve(), link):
        data = dataclasses.replace(run.data, train=train)
        relative = Path(os.path.relpath(weights)), Path(os.path.relpath(teacher))
        loss = dataclasses.replace(run.loss, teacher=relative[1])
        written = dataclasses.replace(run, data=data, init=relative[0], loss=loss)
        assert config_digest(written) == config_digest(known)
    assert config_digest(run) != config_digest(known)
