"""Checkpoints on disk: safetensors and torch files, read without running code from them.

The first bytes of a file tell its format, not its name. Torch files go through the weights-only
reader. Training checkpoints also hold the command line, paths and numpy scalars. Those are read as
empty stand-ins, so that no constructor named in the file runs.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import string
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from sacvit_deploy.decode import check_field, decode, encode, parse_json
from sacvit_deploy.errors import CheckpointError, ConfigError, raised_as
from sacvit_deploy.families.config import ModelConfig
from sacvit_deploy.files import open_regular, replacing
from sacvit_deploy.manifest import MANIFEST
from sacvit_deploy.model.build import build_model
from sacvit_deploy.model.checkpoint_fit import (
    check_finite,
    check_fit,
    check_stored,
    shortened,
)
from sacvit_deploy.model.layouts import to_own_layout
from sacvit_deploy.records import WeightsOrigin

if TYPE_CHECKING:
    from sacvit_deploy.model.vision_model import VisionModel


CONFIG_METADATA = "sacvit_deploy_config"

# DeiT, CF-ViT and LF-ViT evaluate and publish "model", not its moving average. The average is used
# only where nothing else is stored.
_CONTAINERS = ("model", "state_dict", "model_state_dict", "module", "model_ema", "state_dict_ema")
_WRAPPERS = re.compile(r"(module\.|model\.)+")
_COMPILED = "_orig_mod."
_AVERAGE_COUNTER = "n_averaged"

# Objects that training scripts store beside the weights. The names are not imported: see _StandIn.
_IGNORED_GLOBALS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "builtins.list",
    "builtins.dict",
    "builtins.set",
    "builtins.int",
    "builtins.float",
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    ),
    *(
        f"{module}.multiarray.{name}"
        for module in ("numpy.core", "numpy._core")
        for name in ("scalar", "_reconstruct")
    ),
    "numpy.dtype",
    "numpy.ndarray",
)

_STATE_DICT = "The state dict"

_ZIP_START = b"PK\x03\x04"
_PICKLE_START = b"\x80"
_LENGTH_BYTES = 8
_SAFETENSORS_START = b"{"
_PRINTABLE = set(string.printable.encode())

# Far above a training checkpoint of the largest published network.
_LARGEST_BYTES = 8 << 30
_LARGEST_HEADER = 16 << 20
_LONGEST_CONFIG = 1 << 16
# Two names may share one tensor. An expanded tensor or a packed record may claim any size.
_LARGEST_RATIO = 2
_MOST_CONTAINERS = 8
_FLOATING = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


@dataclass(frozen=True)
class Checkpoint:
    """The content of one checkpoint file, read once, or of a state dict in memory.

    Attributes:
        path: The file; None for a state dict.
        sha256: Hash of its bytes; empty for a state dict.
        tensors: By the file's names without wrapper prefixes; floating tensors are float32.
        config: Configuration stored by `save_checkpoint`, if any.
        label: What to call a state dict.
    """

    path: Path | None
    sha256: str
    tensors: dict[str, Tensor]
    config: ModelConfig | None
    label: str = ""

    @classmethod
    def of_state_dict(cls, state_dict: Mapping[str, Tensor], label: str = "") -> Checkpoint:
        """Make one of a state dict.

        Raises:
            CheckpointError: A value is not a plain array of numbers, or two have one name.
        """
        wrong = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
        if wrong:
            raise CheckpointError(
                f"{_STATE_DICT} holds {type(state_dict[wrong[0]]).__name__} for {wrong[0]!r}.",
                "Give a mapping of names to tensors, as `model.state_dict()` returns it.",
            )
        size = sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
        return cls(None, "", _unwrapped(state_dict, Path(label or _STATE_DICT), size), None, label)

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read a safetensors file or a file written by `torch.save`.

        The state dict may be stored under `model`, `state_dict`, `model_state_dict`, `module`,
        `model_ema` or `state_dict_ema`. The first of these wins.

        Raises:
            CheckpointError: The file cannot be read, is damaged, too large or not a checkpoint,
                holds objects whose construction would run code or tensors that are no plain
                arrays of numbers, or its stored configuration is not that of its weights.
        """
        data = _read_bytes(path)
        sha256 = hashlib.sha256(data).hexdigest()
        if _is_safetensors(data, path):
            tensors, text = _read_safetensors(data, path)
        else:
            tensors, text = _find_state_dict(_read_torch(data, path), path), None
        tensors = _unwrapped(tensors, path, len(data))
        config = None if text is None else _stored_config(text, tensors, path)
        return cls(path, sha256, tensors, config)

    @property
    def origin(self) -> WeightsOrigin:
        """The bundle's record of where its weights came from."""
        if self.path is None:
            return WeightsOrigin("model", file=self.label or "a model in memory")
        return WeightsOrigin("checkpoint", file=self.path.name, sha256=self.sha256)

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path or self.label or _STATE_DICT)

    def weights(self, config: ModelConfig) -> dict[str, Tensor]:
        """Bring the tensors to the layout of a model.

        Known are the names of this package, of CF-ViT and LF-ViT, and of DeiT and timm. Position
        tables of another resolution are interpolated. A dense DeiT becomes the start of a two-stage
        network.

        Args:
            config: Model that will load the weights.

        Returns:
            A float32 state dict on the CPU that `build_model(config)` loads strictly.

        Raises:
            CheckpointError: The weights do not fit the model or are not finite. Every key that does
                not fit is named.
        """
        try:
            state = to_own_layout(self.tensors, config, self.config)
        except CheckpointError as error:
            raise CheckpointError(f"{self.name}: {error.problem}", error.fix) from error
        check_fit(state, config, self.name)
        check_finite(self.tensors, self.name)
        return state

    def model(self, config: ModelConfig) -> VisionModel:
        """Build a network with these weights, in evaluation mode.

        Raises:
            CheckpointError: See `weights`.
        """
        weights = self.weights(config)
        model = build_model(config)
        model.load_state_dict(weights, strict=True)
        return model.eval()


def save_checkpoint(path: Path, state_dict: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Write weights and their configuration as one safetensors file, atomically.

    Args:
        path: The file; an existing one is replaced.
        state_dict: Weights in this package's layout, on any device, of any floating dtype.
        config: Configuration of their model, stored as JSON in the metadata.

    Raises:
        CheckpointError: The file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    metadata = {"format": "pt", CONFIG_METADATA: json.dumps(encode(config))}
    problem = f"The checkpoint {path} cannot be written"
    fix = "Check that its folder exists, may be written to, and has space left."
    told = raised_as(CheckpointError, problem, fix, (OSError, SafetensorError))
    with told, replacing(path) as unfinished:
        save_file(tensors, unfinished, metadata=metadata)
        _sort_metadata(unfinished)


def _sort_metadata(path: Path) -> None:
    """Order a safetensors header's metadata by key, so that equal checkpoints are equal files."""
    with path.open("rb+") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # else it would end in the first tensor; any order can be read
            stream.seek(_LENGTH_BYTES)
            stream.write(text.ljust(length))


def _read_bytes(path: Path) -> bytes:
    if (path / MANIFEST).is_file():
        raise CheckpointError(
            f"{path} is a bundle, which is what export makes.",
            f"Use it: sacvit-deploy run {path} cat.jpg; or name the checkpoint it was made from.",
        )
    if url := re.match(r"([a-z][a-z0-9+.-]+:)/+(.*)", str(path), re.IGNORECASE):
        raise CheckpointError(
            f"{url[1]}//{url[2]} is a URL, not a file.", "Download it, and name the file."
        )
    if path.is_dir():
        inside = sorted(
            p.name for p in path.iterdir() if p.suffix in {".safetensors", ".pth", ".pt", ".bin"}
        )
        raise CheckpointError(
            f"{path} is a folder; a checkpoint is one file.",
            f"Name the file in it: {', '.join(inside)}." if inside else "It holds no checkpoint.",
        )
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            _check_size(stream, size, path)
            stream.seek(0)
            return stream.read(size)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {path}.", "Check the path.") from error
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}.",
            "Check its permissions and the disk.",
        ) from error


def _check_size(stream: IO[bytes], size: int, path: Path) -> None:
    """Refuse a file that is no checkpoint, or not as large as it says, before all of it is read."""
    if size == 0:
        raise CheckpointError(
            f"{path} is empty (0 bytes).", "Download it or write it again: the transfer broke off."
        )
    start = stream.read(64)
    is_safetensors = _is_safetensors(start, path)
    header = int.from_bytes(start[:_LENGTH_BYTES], "little") if is_safetensors else 0
    if size > _LARGEST_BYTES or _LARGEST_HEADER < header < size:
        raise CheckpointError(
            f"{path} is too large for a checkpoint: {size} bytes"
            + (f", its header {header}." if header else "."),
            f"Name a file of at most {_LARGEST_BYTES} bytes: write the weights alone.",
        )
    if _bytes_on_disk(stream, size) * _LARGEST_RATIO < size:
        raise CheckpointError(
            f"{path} has {size} bytes, and most of them were never written: the file has holes.",
            "Download it again or write it again: the transfer broke off.",
        )
    try:
        if is_safetensors:
            with safe_open(path, framework="pt"):
                pass
        elif start.startswith(_ZIP_START):
            with zipfile.ZipFile(stream) as archive:
                _check_claim(sum(record.file_size for record in archive.infolist()), size, path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged archive can fail anywhere in its reader
        raise _damaged(path, "safetensors" if is_safetensors else "torch", error) from error


def _bytes_on_disk(stream: IO[bytes], size: int) -> int:
    """Bytes of a file that are not in holes; all of them where the system does not tell."""
    if not hasattr(os, "SEEK_DATA"):
        return size
    descriptor, found, end = stream.fileno(), 0, 0
    before = os.lseek(descriptor, 0, os.SEEK_CUR)  # the stream counts on it
    try:
        while end < size and found * _LARGEST_RATIO < size:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            found += end - start
    except OSError as error:
        return found if error.errno == errno.ENXIO else size  # a hole up to the end
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)
    return found


def _check_claim(claimed: int, size: int, path: Path) -> None:
    if claimed > _LARGEST_RATIO * size:
        raise CheckpointError(
            f"{path} has {size} bytes, and its tensors claim {claimed}.",
            "Write the weights again, each tensor with values of its own (Tensor.clone()).",
        )


def _is_safetensors(data: bytes, path: Path) -> bool:
    """Tell a safetensors file (True) from a torch file (False) by its first bytes."""
    # Checked first: the header's length may begin with the byte that begins a pickle.
    if data[_LENGTH_BYTES:].startswith(_SAFETENSORS_START):
        return True
    if data.startswith((_ZIP_START, _PICKLE_START)):
        return False
    found, fix = _describe_other_file(path, data[:64])
    raise CheckpointError(f"{path} is not a checkpoint: {found}.", fix)


def _describe_other_file(path: Path, start: bytes) -> tuple[str, str]:
    """Tell what a file is by its first bytes, and what to do with it."""
    if path.name.endswith(".index.json"):
        return "it lists the shards of a checkpoint that was split over several files", (
            "Join the shards into one file first: read each with safetensors.torch.load_file, "
            "merge the dicts, and write them with safetensors.torch.save_file; then name that file."
        )
    found = f"it starts with the bytes {start[:8].hex(' ')}"
    if set(start) <= _PRINTABLE:
        found = f"it is a text that starts with {start[:32].decode()!r}"
    if start.startswith(b"version https://git-lfs"):
        return found, "It is a Git LFS pointer: fetch the file itself with: git lfs pull"
    if start.lstrip().startswith(b"<"):
        return found, "It is a web page, not the file it links to: download the checkpoint again."
    return found, "Name a .safetensors file, or a .pth, .pt or .bin file written by torch.save."


def _read_safetensors(data: bytes, path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read the tensors, and the stored configuration as text."""
    try:
        tensors = load(data)
        header = data[_LENGTH_BYTES:][: int.from_bytes(data[:_LENGTH_BYTES], "little")]
        metadata = parse_json(header, "Its header").get("__metadata__") or {}
        return tensors, metadata.get(CONFIG_METADATA)
    except Exception as error:  # it also names types that torch lacks
        raise _damaged(path, "safetensors", error) from error


def _stored_config(text: str, tensors: Mapping[str, Tensor], path: Path) -> ModelConfig:
    """Decode a stored configuration and compare it with the weights beside it."""
    try:
        length = len(text)
        check_field(length <= _LONGEST_CONFIG, "its length", length, f"{_LONGEST_CONFIG} or less")
        config = decode(ModelConfig, parse_json(text, "It"), "config", refuse_unknown=True)
        check_stored(tensors, config)
    except (ValueError, OverflowError, RecursionError, ConfigError) as error:
        problem = error.problem if isinstance(error, ConfigError) else str(error)
        raise CheckpointError(
            f"The model configuration stored in {path} cannot be used: {shortened(problem, 600)}",
            "Write the checkpoint again with this release.",
        ) from error
    return config


def _read_torch(data: bytes, path: Path) -> object:
    stand_ins: list[Any] = [(_StandIn, name) for name in _IGNORED_GLOBALS]
    # The reader fills plain dicts only.
    stand_ins.append((lambda *_: {}, "collections.defaultdict"))
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            # The reader warns about files that it then refuses; the error is enough.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail anywhere in the reader
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path} holds an object of {shortened(refused[1])}, not only weights; "
                "reading that could run code from the file, so it was refused.",
                "If you trust its source, write the weights alone where that code is installed: "
                "torch.save(torch.load(FILE, weights_only=False)['model'], 'weights.pth') for a "
                "dict, torch.save(torch.load(FILE, weights_only=False).state_dict(), "
                "'weights.pth') for a whole model; then name weights.pth.",
            ) from error
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript archive, a program and not only weights.",
                "Write the state dict of the model it was made from with torch.save.",
            ) from error
        raise _damaged(path, "torch", error) from error


class _StandIn:
    """A placeholder for a harmless object that is not needed; accepts and ignores any state."""

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def _damaged(path: Path, kind: str, error: Exception) -> CheckpointError:
    # torch wraps the reader's message in advice to load the file unsafely.
    words = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    reason = shortened(words.partition("\n")[0].rstrip("."), 300) or type(error).__name__
    return CheckpointError(
        f"{path} starts like a {kind} file but cannot be read ({path.stat().st_size} bytes): it is "
        f"truncated, damaged or something else. The reader says: {reason}.",
        "Compare its size with the source's and copy or download it again.",
    )


def _find_state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """Search the usual containers for the first dict that holds tensors."""
    for _ in range(_MOST_CONTAINERS):
        if not isinstance(content, Mapping):
            break
        inner = (content.get(name) for name in _CONTAINERS)
        found = next((each for each in inner if isinstance(each, Mapping) and each), None)
        if found is None:
            break
        content = found
    named = content if isinstance(content, Mapping) else {}
    tensors = {k: v for k, v in named.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        return tensors
    kind = type(content).__name__
    if isinstance(content, Mapping):
        keys = list(content)[:10]
        names = [shortened(key) if isinstance(key, str) else type(key).__name__ for key in keys]
        kind = f"a dict of {', '.join(names) or 'nothing'}"
    raise CheckpointError(
        f"{path} holds no weights: found {kind}.",
        f"Name a file with a state dict, bare or under one of: {', '.join(_CONTAINERS)}.",
    )


def _unwrapped(tensors: Mapping[str, Tensor], path: Path, size: int) -> dict[str, Tensor]:
    """Check that tensors are plain arrays that a file of `size` bytes can hold, and rename them.

    DDP, torch.compile and Lightning add prefixes to every name; these are removed.
    """
    for name, tensor in tensors.items():
        _check_plain(name, tensor, path)
    _check_claim(sum(t.numel() * t.element_size() for t in tensors.values()), size, path)
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = name.replace(_COMPILED, "")
        wrapped = _WRAPPERS.match(bare)
        bare = bare[wrapped.end() :] if wrapped else bare
        if bare == _AVERAGE_COUNTER:
            continue
        if bare in result:
            raise CheckpointError(
                f"{path} holds two tensors for {shortened(bare)}, one of them as "
                f"{shortened(name)}.",
                "Write one of the two models to a file of its own.",
            )
        values = tensor.detach()
        result[bare] = values.to(torch.float32) if values.is_floating_point() else values
    return result


def _check_plain(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse tensors that have no values in memory, one for each element."""
    found = str(tensor.layout).removeprefix("torch.")
    if tensor.device.type != "cpu":
        found = tensor.device.type
    elif tensor.is_quantized or tensor.is_nested:
        found = "quantised" if tensor.is_quantized else "nested"
    elif tensor.is_floating_point() and tensor.dtype not in _FLOATING:
        found = str(tensor.dtype).removeprefix("torch.")
    if found != "strided":
        raise CheckpointError(
            f"{shortened(name)} in {path} is a {found} tensor, not a plain array of numbers.",
            "Convert it before it is saved: dequantize() or to_dense(), on the CPU, in float32.",
        )
