"""Checkpoints made to do harm: code, nesting, sizes, holes, and what is no file."""

from __future__ import annotations

import json
import os
import re
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from sacvit_deploy.decode import encode
from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoints import Checkpoint
from tests.model.stored_weights import refusal, weights_of, write


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
