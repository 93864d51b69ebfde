"""Several ONNX graphs beside one file that holds each distinct parameter once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto
from onnx.external_data_helper import set_external_data

WEIGHTS_FILE = "weights.bin"

# Smaller tensors (biases of a narrow head, reshape targets) stay readable inside the graph.
_SMALLEST_EXTERNAL = 1024
# Page size, so that a backend can map a tensor instead of reading it.
_ALIGNMENT = 4096


def save_with_shared_weights(
    graphs: Mapping[str, onnx.ModelProto], folder: Path, weights_file: str = WEIGHTS_FILE
) -> None:
    """Write each graph under its file name and all large tensors into one file of weights.

    Both stages use the same parameters. Tensors are matched by content, so that a tensor that an
    exporter or a pass renamed or copied is still stored once.

    Args:
        graphs: Models by file name; changed, since their tensors become references.
        folder: Existing folder.
        weights_file: Name of the file of weights in it.
    """
    offsets: dict[str, int] = {}
    with (folder / weights_file).open("wb") as file:
        for model in graphs.values():
            for tensor in model.graph.initializer:
                # The values may be in any field of the tensor; to_array knows which.
                raw = onnx.numpy_helper.to_array(tensor).tobytes()
                if len(raw) < _SMALLEST_EXTERNAL:
                    continue
                key = hashlib.sha256(raw).hexdigest()
                if key not in offsets:
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    offsets[key] = file.tell()
                    file.write(raw)
                _make_reference(tensor, weights_file, offsets[key], len(raw))
    for name, model in graphs.items():
        (folder / name).write_bytes(model.SerializeToString(deterministic=True))


def _make_reference(tensor: TensorProto, file: str, offset: int, length: int) -> None:
    for values in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(values)
    # set_external_data requires raw data, and leaves it in place.
    tensor.raw_data = b""
    set_external_data(tensor, file, offset=offset, length=length)
    tensor.ClearField("raw_data")
