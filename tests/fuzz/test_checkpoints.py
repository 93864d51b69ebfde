"""Hostile checkpoints: read, and brought into a network."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sacvit_deploy.decode import encode
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoint_files import CONFIG_METADATA
from sacvit_deploy.model.checkpoints import Checkpoint, save_checkpoint
from tests.fakes import DENSE, SAC
from tests.fuzz.strategies import Damage, check_refusals, damages, edited, edits, json_values

_STATE = {name: value.clone() for name, value in build_model(SAC).state_dict().items()}
_NAMES = sorted(_STATE)


def _saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def _safetensors(folder: Path) -> bytes:
    save_checkpoint(folder / "own.safetensors", _STATE, SAC)
    return (folder / "own.safetensors").read_bytes()


_TORCH = {
    "zip": _saved(_STATE),
    "zip in model": _saved({"model": _STATE, "epoch": 3}),
    "pickle": _saved(_STATE, _use_new_zipfile_serialization=False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("checkpoints")
    return path


@pytest.fixture(scope="module")
def own(folder) -> bytes:
    return _safetensors(folder)


def check(folder: Path, content: bytes) -> None:
    """Read a file, and make the networks that `export` would make of it."""
    path = folder / "weights"
    path.write_bytes(content)

    def models() -> None:
        checkpoint = Checkpoint.read(path)
        checkpoint.model(checkpoint.config or SAC)

    check_refusals(models, lambda: Checkpoint.read(path).model(DENSE))


def test_untouched_ones_are_read(folder, own):
    for content in (own, *_TORCH.values()):
        path = folder / "weights"
        path.write_bytes(content)
        Checkpoint.read(path).model(SAC)


@given(damages(_TORCH))
def test_damaged_torch_files(folder, damage: Damage):
    check(folder, damage.of(_TORCH[damage.name]))


@given(st.data())
def test_damaged_safetensors(folder, own, data):
    check(folder, data.draw(damages({"own": own})).of(own))


def _with_header(content: bytes, header: bytes) -> bytes:
    size = int.from_bytes(content[:8], "little")
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def _header(content: bytes) -> Any:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


@given(st.data())
def test_edited_safetensors_headers(folder, own, data):
    header = _header(own)
    check(folder, _with_header(own, edited(header, data.draw(edits(header)))))


@given(edits(encode(SAC)))
def test_edited_configurations(folder, own, changes):
    header = _header(own)
    header["__metadata__"][CONFIG_METADATA] = edited(encode(SAC), changes).decode()
    check(folder, _with_header(own, json.dumps(header).encode()))


def _quantized(value: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


_TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "float64": torch.Tensor.double,
    "float16": torch.Tensor.half,
    "bfloat16": torch.Tensor.bfloat16,
    "float8": lambda value: value.to(torch.float8_e4m3fn),
    "int64": torch.Tensor.long,
    "uint8": torch.Tensor.byte,
    "bool": torch.Tensor.bool,
    "complex": lambda value: value.to(torch.complex64),
    "quantized": _quantized,
    "sparse": torch.Tensor.to_sparse,
    "meta": lambda value: value.to("meta"),
    "transposed": lambda value: value.transpose(0, -1),
    "flat": torch.Tensor.flatten,
    "no numbers": lambda value: value[:0],
    "one number": lambda _: torch.zeros(()),
    "more dimensions": lambda value: value[None, None],
    "NaN": lambda value: value * float("nan"),
    "infinite": lambda value: value + float("inf"),
    "expanded": lambda value: torch.zeros(1).expand(value.shape),
    "expanded far": lambda _: torch.zeros(1).expand(10**6, 10**6),
    "parameter": torch.nn.Parameter,
    "nested": lambda value: torch.nested.nested_tensor([value, value]),
    "list": lambda value: value.flatten()[:3].tolist(),
    "None": lambda _: None,
}
_KEYS: tuple[Any, ...] = ("", "x" * 5_000, "\0", 5, None, ("a", 1), "module.", "model.head.weight")


def _deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"model": value}
    return value


def _in_itself() -> Any:
    value: dict[str, Any] = {}
    value["model"] = value
    return value


_CONTENTS: dict[str, Callable[[], Any]] = {
    "empty": dict,
    "list": lambda: [_STATE],
    "tensor": lambda: torch.zeros(3),
    "nested": lambda: _deep(200),
    "in itself": _in_itself,
    "many keys": lambda: {f"{i}": torch.zeros(1) for i in range(300)},
    "long keys": lambda: {"y" * 50_000 + str(i): torch.zeros(1) for i in range(20)},
}


@given(
    st.dictionaries(st.sampled_from(_NAMES), st.sampled_from(sorted(_TENSORS)), max_size=3),
    st.lists(st.sampled_from(_KEYS), max_size=2),
    st.lists(st.sampled_from(_NAMES), max_size=2),
    st.sampled_from(["", "model", "state_dict", "module"]),
)
def test_odd_tensors(folder, kinds, added, dropped, container):
    state: dict[Any, Any] = {**_STATE, **dict.fromkeys(added, torch.zeros(2))}
    with warnings.catch_warnings(), contextlib.suppress(RuntimeError):  # torch has no such tensor
        warnings.simplefilter("ignore")
        state.update({name: _TENSORS[kind](state[name]) for name, kind in kinds.items()})
    for name in dropped:
        state.pop(name, None)
    check(folder, _saved({container: state} if container else state))


@given(st.sampled_from(sorted(_CONTENTS)), json_values())
def test_odd_contents(folder, name, beside):
    content = _CONTENTS[name]()
    check(folder, _saved({**content, "epoch": beside} if isinstance(content, dict) else content))
