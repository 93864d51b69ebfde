"""Reading and writing files; every file that is no checkpoint ends in one error that says why."""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import pathlib
import re
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sacvit_deploy.decode import encode
from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoints import Checkpoint, save_checkpoint
from sacvit_deploy.records import WeightsOrigin
from tests.model.stored_weights import assert_same, read_weights, refusal, weights_of, write

# Round trip


@pytest.mark.parametrize("kind", ["tiny", "tiny_dense"])
def test_saved_checkpoint_comes_back(tmp_path, request, kind):
    config = request.getfixturevalue(kind)
    state, path = weights_of(config), tmp_path / "model.safetensors"
    save_checkpoint(path, state, config)
    assert Checkpoint.read(path).config == config
    assert_same(read_weights(path, config), state)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_equal_weights_give_equal_files(tmp_path, tiny):
    """The header's metadata had an order of its own in every file."""
    state = weights_of(tiny)
    backwards = dict(reversed(state.items()))
    path, found = tmp_path / "model.safetensors", set()
    for number in range(8):
        save_checkpoint(path, backwards if number % 2 else state, tiny)
        found.add(hashlib.sha256(path.read_bytes()).digest())
    assert len(found) == 1
    assert Checkpoint.read(path).config == tiny


def test_a_longer_header_does_not_end_in_the_tensors(tmp_path, tiny, monkeypatch):
    """Another release of safetensors may write the same header in fewer bytes."""
    state, path, dumps = weights_of(tiny), tmp_path / "model.safetensors", json.dumps
    monkeypatch.setattr(json, "dumps", lambda v, **how: dumps(v, **how) + " " * 9_999 * len(how))
    save_checkpoint(path, state, tiny)
    assert Checkpoint.read(path).config == tiny
    assert_same(read_weights(path, tiny), state)


def test_saving_takes_views_and_parameters(tmp_path, tiny_dense):
    model = build_model(tiny_dense)
    state: dict[str, torch.Tensor] = dict(model.named_parameters())
    state["head.weight"] = torch.randn(24, 5).T
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, state, tiny_dense)
    assert torch.equal(read_weights(path, tiny_dense)["head.weight"], state["head.weight"])


def test_saving_replaces_whole_or_not_at_all(tmp_path, tiny_dense, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, weights_of(tiny_dense), tiny_dense)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(CheckpointError, match="no space left"):
        save_checkpoint(path, weights_of(tiny_dense, seed=1), tiny_dense)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_saving_into_a_missing_folder(tmp_path, tiny_dense):
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "no" / "m.safetensors", weights_of(tiny_dense), tiny_dense)


def test_files_of_others_have_no_config(tmp_path, tiny_dense):
    assert Checkpoint.read(write(tmp_path, weights_of(tiny_dense))).config is None
    foreign = tmp_path / "timm.safetensors"
    save_file(weights_of(tiny_dense), foreign)
    assert Checkpoint.read(foreign).config is None


def test_a_model_is_built_with_the_weights(tmp_path, tiny):
    state = weights_of(tiny)
    model = Checkpoint.read(write(tmp_path, state)).model(tiny)
    assert_same(model.state_dict(), state)
    assert not model.training


def test_no_model_is_built_with_some_of_the_weights(tmp_path, tiny):
    state = weights_of(tiny)
    del state["head.bias"]
    with pytest.raises(CheckpointError, match=r"Missing \(1\): head\.bias"):
        Checkpoint.read(write(tmp_path, state)).model(tiny)


def test_the_file_is_read_once(tmp_path, tiny):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, weights_of(tiny), tiny)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    checkpoint = Checkpoint.read(path)
    path.unlink()
    assert checkpoint.config == tiny
    assert checkpoint.model(tiny).config == tiny
    assert checkpoint.origin == WeightsOrigin("checkpoint", file=path.name, sha256=sha256)


# Containers, prefixes, types


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"state_dict": s},
        lambda s: {"module": s},
        lambda s: {"model_ema": s},
        lambda s: {"model": {}, "model_ema": s},
        lambda s: {"model": s, "model_ema": {k: v + 1 for k, v in s.items()}},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
        lambda s: {f"model.{k}": v for k, v in s.items()},
        lambda s: {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in s.items()}},
        lambda s: collections.OrderedDict(s),
        lambda s: {k: torch.nn.Parameter(v) for k, v in s.items()},
    ],
)
def test_containers_and_prefixes(tmp_path, tiny_dense, wrap):
    state = weights_of(tiny_dense)
    assert_same(read_weights(write(tmp_path, wrap(state)), tiny_dense), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, tiny_dense, dtype):
    state = {name: value.to(dtype) for name, value in weights_of(tiny_dense).items()}
    wanted = {name: value.float() for name, value in state.items()}
    assert_same(read_weights(write(tmp_path, state), tiny_dense), wanted)


def test_the_content_tells_the_format_not_the_name(tmp_path, tiny_dense):
    state = weights_of(tiny_dense)
    save_file(state, tmp_path / "renamed.pth")
    assert_same(read_weights(tmp_path / "renamed.pth", tiny_dense), state)
    renamed = write(tmp_path, state, "renamed.safetensors")
    assert_same(read_weights(renamed, tiny_dense), state)


@pytest.mark.parametrize("name", ["w" * length for length in range(1, 260, 8)])
def test_a_safetensors_file_is_known_whatever_its_header_length(tmp_path, name):
    """The length comes first in the file, and its lowest byte may be that of a pickle."""
    path = tmp_path / "weights.safetensors"
    save_file({name: torch.zeros(1)}, path)
    assert list(Checkpoint.read(path).tensors) == [name]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_training_checkpoint_with_everything_in_it(tmp_path, tiny_dense, zipped):
    state = weights_of(tiny_dense)
    everything = {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(
            lr=0.1, output_dir=pathlib.Path("out"), nested=argparse.Namespace()
        ),
        "best": np.float64(81.1),
        "count": np.int64(3),
        "history": np.arange(4.0),
        "names": np.array(["a", "b"]),
        "meters": collections.defaultdict(list, {"loss": [1.0]}),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
    }
    path = tmp_path / "checkpoint.pth"
    torch.save(everything, path, _use_new_zipfile_serialization=zipped)
    before = set(torch.serialization.get_safe_globals())
    assert_same(read_weights(path, tiny_dense), state)
    assert set(torch.serialization.get_safe_globals()) == before


def test_two_models_in_one_file(tmp_path, tiny_dense):
    state = weights_of(tiny_dense)
    state["module.cls_token"] = state["cls_token"]
    assert "two tensors for cls_token" in refusal(write(tmp_path, state), tiny_dense).problem


@pytest.mark.parametrize("content", [{"epoch": 3, "lr": 0.1}, {}, [1, 2], torch.zeros(3)])
def test_no_weights_inside(tmp_path, tiny, content):
    error = refusal(write(tmp_path, content), tiny)
    assert "holds no weights" in error.problem
    assert "state_dict" in error.fix


# Files


def test_no_such_file(tmp_path, tiny):
    assert "no file" in refusal(tmp_path / "none.pth", tiny).problem


def test_a_folder(tmp_path, tiny):
    write(tmp_path, {}, "inside.pth")
    error = refusal(tmp_path, tiny)
    assert "is a folder" in error.problem
    assert "inside.pth" in error.fix


@pytest.mark.parametrize("name", ["empty.pth", "empty.safetensors"])
def test_an_empty_file(tmp_path, tiny, name):
    (tmp_path / name).touch()
    assert "0 bytes" in refusal(tmp_path / name, tiny).problem


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path, tiny):
    path = write(tmp_path, weights_of(tiny))
    path.chmod(0)
    assert "cannot be read" in refusal(path, tiny).problem


@pytest.mark.parametrize("name", ["notes.pth", "notes.safetensors", "notes.bin"])
@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("epoch 1 loss 3.2\nepoch 2 loss 3.1\n", "torch.save"),
        ("hi", "torch.save"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("<!DOCTYPE html><html></html>", "web page"),
    ],
)
def test_a_text_renamed(tmp_path, tiny, name, text, hint):
    (tmp_path / name).write_text(text)
    error = refusal(tmp_path / name, tiny)
    assert "not a checkpoint" in error.problem
    assert hint in error.fix


def test_a_picture(tmp_path, tiny):
    (tmp_path / "cat.pth").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    assert "ff d8 ff e0" in refusal(tmp_path / "cat.pth", tiny).problem


def test_an_index_of_shards(tmp_path, tiny):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"cls_token": "model-00001-of-00002.safetensors"}}))
    error = refusal(path, tiny)
    assert "shards" in error.problem
    assert "merge" in error.fix


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_truncated(tmp_path, tiny, kind, keep):
    path = tmp_path / "weights.bin"
    if kind == "safetensors":
        save_file(weights_of(tiny), path)
    else:
        torch.save(weights_of(tiny), path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    error = refusal(path, tiny)
    assert "truncated" in error.problem
    assert error.__cause__ is not None


def test_a_zip_that_is_no_checkpoint(tmp_path, tiny):
    np.savez(tmp_path / "arrays.npz", x=np.zeros(3))
    assert "cannot be read" in refusal(tmp_path / "arrays.npz", tiny).problem


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_archive(tmp_path, tiny):
    path = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    assert "TorchScript" in refusal(path, tiny).problem


def test_damaged_stored_config(tmp_path, tiny):
    for text in ("{", "[]", '{"family": "swin"}'):
        path = tmp_path / "m.safetensors"
        save_file(weights_of(tiny), path, metadata={"sacvit_deploy_config": text})
        with pytest.raises(CheckpointError, match=r"configuration stored in .*m\.safetensors"):
            Checkpoint.read(path)


# Code


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_does_not_run(tmp_path, tiny, zipped):
    path, mark = tmp_path / "evil.pth", tmp_path / "mark"
    content = {"model": weights_of(tiny), "extra": Trap(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    error = refusal(path, tiny)
    assert ".open" in error.problem
    assert "torch.save(" in error.fix
    assert not mark.exists()


def test_a_whole_pickled_model_is_refused(tmp_path, tiny):
    error = refusal(write(tmp_path, build_model(tiny)), tiny)
    assert "sacvit_deploy.model.two_stage.TwoStageViT" in error.problem
    assert "state_dict()" in error.fix


# Files made to do harm: one short error, no gigabytes, no waiting


def endless() -> dict:
    content: dict = {"epoch": 1}
    content["model"] = content
    return content


def with_head(tiny, head: torch.Tensor) -> dict:
    return {**weights_of(tiny), "head.weight": head}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda c: endless(), "holds no weights"),
        (lambda c: {10**600: 1, "k" * 50_000: 2, (((),),): 3}, "holds no weights"),
        (lambda c: {10**600: torch.zeros(1)}, "holds no weights"),
        (lambda c: with_head(c, torch.zeros(1).expand(10**10, 24)), "tensors claim 960"),
        (lambda c: dict.fromkeys(map(str, range(1000)), torch.zeros(10**4)), "tensors claim"),
        (lambda c: with_head(c, torch.zeros(5, 24, device="meta")), "head.weight .* meta tensor"),
        (lambda c: with_head(c, torch.eye(24).to_sparse()), "sparse_coo tensor"),
        (lambda c: with_head(c, torch.eye(24).to_sparse_csr()), "sparse_csr tensor"),
        (
            lambda c: with_head(
                c, torch.quantize_per_tensor(torch.zeros(5, 24), 1.0, 0, torch.qint8)
            ),
            "quantised tensor",
        ),
        (
            lambda c: with_head(c, torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])),
            "nested tensor",
        ),
        (
            lambda c: with_head(c, torch.zeros(9, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)),
            "float4_e2m1fn_x2 tensor",
        ),
        (
            lambda c: {
                **weights_of(c),
                "pos_embed_fine": torch.zeros(1, 17, 24, dtype=torch.int64),
            },
            r"pos_embed_fine: found int64 \(1, 17, 24\)",
        ),
        (lambda c: {"blocks." + "9" * 5000 + ".x": torch.zeros(1), **weights_of(c)}, "Unexpected"),
        (lambda c: {f"{i}" + "n" * 50_000: torch.zeros(1) for i in range(9)}, "not a Vision"),
        (
            lambda c: {
                **weights_of(c),
                **{f"dist_token{i}" + "n" * 50_000: torch.zeros(1) for i in range(9)},
            },
            "distilled",
        ),
        (lambda c: {f"blocks.{i}.{i}\ud800": torch.zeros(i % 50) for i in range(3000)}, "Vision"),
        (
            lambda c: {
                **weights_of(c),
                **{f"blocks.0.mlp.fc{'1' * i}.weight": torch.zeros([1] * 60) for i in range(60)},
            },
            "and .* more",
        ),
        (
            lambda c: {("module." * 9000) + k: v for k, v in weights_of(c).items()} | weights_of(c),
            "two tensors",
        ),
    ],
)
def test_contents_made_to_do_harm(tmp_path, tiny, make, words):
    error = refusal(write(tmp_path, make(tiny)), tiny)
    assert re.search(words, error.problem), error.problem
    assert len(str(error)) < 2000
    str(error).encode()


def test_dicts_in_dicts(tmp_path, tiny):
    content: dict = {"model": weights_of(tiny)}
    for _ in range(5000):
        content = {"model": content}
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    try:
        path = write(tmp_path, content)
    finally:
        sys.setrecursionlimit(before)
    assert "found a dict of model" in refusal(path, tiny).problem


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 10**4},
        {"num_classes": 10**9},
        {"embed_dim": 24 * 10**9},
        {"image_size": [8 * 10**9, 8 * 10**9]},
        {"image_size": [10**400 * 8, 8]},
        {"mlp_ratio": 1e308},
        {"patch_size": 1, "image_size": [8, 8]},
        {"family": "n" * 60_000},
        {"n" * 60_000: 1},
    ],
)
def test_a_stored_configuration_of_another_network(tmp_path, tiny, changes, monkeypatch):
    """It is refused before a network of that size is built."""
    monkeypatch.setattr(
        "sacvit_deploy.model.checkpoint_fit.build_model", lambda _: pytest.fail("built")
    )
    text = json.dumps({**encode(tiny), **changes})
    path = tmp_path / "m.safetensors"
    save_file(weights_of(tiny), path, metadata={"sacvit_deploy_config": text})
    with pytest.raises(
        CheckpointError, match=r"configuration stored in .*m\.safetensors"
    ) as caught:
        Checkpoint.read(path)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("text", ["[" * 60_000, '{"a":' * 10_000, "1" * 60_000, "[]," * 10**6])
def test_a_stored_configuration_without_end(tmp_path, tiny, text):
    path = tmp_path / "m.safetensors"
    save_file(weights_of(tiny), path, metadata={"sacvit_deploy_config": text})
    with pytest.raises(CheckpointError, match="configuration stored in") as caught:
        Checkpoint.read(path)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("size", [7 << 30, 1 << 40])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "zeros"])
def test_a_sparse_file_of_a_terabyte(tmp_path, tiny_dense, kind, size):
    resource = pytest.importorskip("resource")
    path = tmp_path / "weights.pth"
    if kind == "safetensors":
        save_file(weights_of(tiny_dense), path)
    elif kind == "zip":
        write(tmp_path, weights_of(tiny_dense))
    with path.open("ab") as stream:
        stream.truncate(size)
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert str(size) in refusal(path, tiny_dense).problem or kind == "zeros"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started < 1 << 20  # KiB


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="holes cannot be found here")
def test_a_pickle_that_is_mostly_holes_is_not_read(tmp_path, tiny_dense):
    resource = pytest.importorskip("resource")
    path = tmp_path / "weights.pth"
    torch.save(weights_of(tiny_dense), path, _use_new_zipfile_serialization=False)
    os.truncate(path, 7 << 30)
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "the file has holes" in refusal(path, tiny_dense).problem
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started < 1 << 20  # KiB


def test_a_few_holes_are_read(tmp_path, tiny_dense):
    """Copying may make holes of zeros."""
    state, path = weights_of(tiny_dense), tmp_path / "weights.pth"
    size = sum(tensor.numel() for tensor in state.values())
    torch.save({**state, "zeros": torch.zeros(size // 2)}, path)
    content = path.read_bytes()
    with path.open("wb") as stream:
        for start in range(0, len(content), 4096):
            page = content[start : start + 4096]
            stream.seek(start)
            stream.write(page.rstrip(b"\0"))
        stream.truncate(len(content))
    assert path.read_bytes() == content
    assert Checkpoint.read(path).tensors.keys() == {*state, "zeros"}


@pytest.mark.parametrize("start", [b"\x80\x02", (10**12).to_bytes(8, "little") + b'{"a":'])
def test_a_terabyte_that_says_so(tmp_path, tiny, start):
    path = tmp_path / "weights.pth"
    path.write_bytes(start)
    with path.open("ab") as stream:
        stream.truncate(1 << 40)
    assert "too large" in refusal(path, tiny).problem


def test_a_packed_file_that_unpacks_to_gigabytes(tmp_path, tiny):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", bytes(1 << 26))
    assert "claim 67108864" in refusal(path, tiny).problem


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("name", ["fifo", "/dev/zero", "/dev/ptmx", "/dev/stdin"])
def test_what_is_no_file(tmp_path, tiny, name):
    path = tmp_path / name
    if name == "fifo":
        os.mkfifo(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint.read(path)
