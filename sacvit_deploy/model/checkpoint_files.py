"""Tensors of checkpoint files: safetensors and torch files, read without running their code.

The first bytes of a file tell its format, not its name. Torch files go through the weights-only
reader. Training checkpoints also hold the command line, paths and numpy scalars. Those are read as
empty stand-ins, so that no constructor named in the file runs.
"""

from __future__ import annotations

import errno
import io
import os
import re
import string
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from sacvit_deploy.decode import parse_json
from sacvit_deploy.errors import CheckpointError
from sacvit_deploy.files import open_regular
from sacvit_deploy.manifest import MANIFEST
from sacvit_deploy.model.checkpoint_fit import shortened

CONFIG_METADATA = "sacvit_deploy_config"
"""Key of the configuration in the metadata of a safetensors file."""

LENGTH_BYTES = 8
"""Bytes of a safetensors file that hold the length of its header."""

# DeiT, CF-ViT and LF-ViT evaluate and publish "model", not its moving average. The average is used
# only where nothing else is stored.
_CONTAINERS = ("model", "state_dict", "model_state_dict", "module", "model_ema", "state_dict_ema")

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

_ZIP_START = b"PK\x03\x04"
_PICKLE_START = b"\x80"
_SAFETENSORS_START = b"{"
_PRINTABLE = set(string.printable.encode())

# Far above a training checkpoint of the largest published network.
_LARGEST_BYTES = 8 << 30
_LARGEST_HEADER = 16 << 20
# Two names may share one tensor. An expanded tensor or a packed record may claim any size.
_LARGEST_RATIO = 2
_MOST_CONTAINERS = 8


def read_bytes(path: Path) -> bytes:
    """Read a file that may be a checkpoint.

    Raises:
        CheckpointError: It cannot be read, or is empty, too large, or not as large as it says.
    """
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


def stored_tensors(data: bytes, path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read the tensors of a file, and the configuration that is stored with them as text.

    Args:
        data: Content of the file.
        path: The file, for messages.

    Raises:
        CheckpointError: It is damaged, is no checkpoint, holds no tensors, or holds objects whose
            construction would run code.
    """
    if _is_safetensors(data, path):
        return _read_safetensors(data, path)
    return _find_state_dict(_read_torch(data, path), path), None


def _check_size(stream: IO[bytes], size: int, path: Path) -> None:
    """Refuse a file that is no checkpoint, or not as large as it says, before all of it is read."""
    if size == 0:
        raise CheckpointError(
            f"{path} is empty (0 bytes).", "Download it or write it again: the transfer broke off."
        )
    start = stream.read(64)
    is_safetensors = _is_safetensors(start, path)
    header = int.from_bytes(start[:LENGTH_BYTES], "little") if is_safetensors else 0
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
                check_claim(sum(record.file_size for record in archive.infolist()), size, path)
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


def check_claim(claimed: int, size: int, path: Path) -> None:
    """Raise `CheckpointError` if tensors claim far more bytes than a file of that size holds."""
    if claimed > _LARGEST_RATIO * size:
        raise CheckpointError(
            f"{path} has {size} bytes, and its tensors claim {claimed}.",
            "Write the weights again, each tensor with values of its own (Tensor.clone()).",
        )


def _is_safetensors(data: bytes, path: Path) -> bool:
    """Tell a safetensors file (True) from a torch file (False) by its first bytes."""
    # Checked first: the header's length may begin with the byte that begins a pickle.
    if data[LENGTH_BYTES:].startswith(_SAFETENSORS_START):
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
        header = data[LENGTH_BYTES:][: int.from_bytes(data[:LENGTH_BYTES], "little")]
        metadata = parse_json(header, "Its header").get("__metadata__") or {}
        return tensors, metadata.get(CONFIG_METADATA)
    except Exception as error:  # it also names types that torch lacks
        raise _damaged(path, "safetensors", error) from error


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
