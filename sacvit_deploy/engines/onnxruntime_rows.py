"""Rows of a tensor, gathered on the device by ONNX Runtime.

The library has no call for that, so a graph of one Gather computes it. The online half has no onnx
to make the graph with, and writes its few bytes itself.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Element types of onnx.proto.
_ELEMENTS = {"float32": 1, "uint8": 2, "int64": 7, "float16": 10}
_ROWS = "int64"


class RowGatherer:
    """Gathers rows of tensors of any type; safe to call from several threads."""

    def __init__(self, ort: ModuleType) -> None:
        self._ort = ort
        self._sessions: dict[tuple[str, str], Any] = {}

    def __call__(
        self, value: Any, dtype: np.dtype[Any], numbers: NDArray[np.int64], device: str
    ) -> Any:
        """Gather rows.

        Args:
            value: `OrtValue` on the device.
            dtype: Its dtype.
            numbers: Row numbers, (K,).
            device: `cpu` or `cuda`.

        Returns:
            A new `OrtValue` of K rows, on the same device.
        """
        binding = self._session(dtype.name, device).io_binding()
        binding.bind_ortvalue_input("tensor", value)
        binding.bind_cpu_input("numbers", np.ascontiguousarray(numbers))
        binding.bind_output("rows", device, 0)
        self._session(dtype.name, device).run_with_iobinding(binding)
        return binding.get_outputs()[0]

    def _session(self, dtype: str, device: str) -> Any:
        key = dtype, device
        if key not in self._sessions:
            providers = ["CPUExecutionProvider"]
            if device == "cuda":
                providers.insert(0, "CUDAExecutionProvider")
            self._sessions[key] = self._ort.InferenceSession(gather(dtype), providers=providers)
        return self._sessions[key]


def gather(dtype: str) -> bytes:
    """An ONNX graph with the inputs `tensor` and `numbers` and the output `rows`.

    The numbers in it are those of the fields in onnx.proto.
    """
    node = b"".join(
        _field(number, text.encode())
        for number, text in ((1, "tensor"), (1, "numbers"), (2, "rows"), (4, "Gather"))
    )
    graph = _field(1, node) + _field(2, b"gather_rows")
    graph += _field(11, _value("tensor", dtype)) + _field(11, _value("numbers", _ROWS))
    graph += _field(12, _value("rows", dtype))
    ir_version, opset = _number(1, 8), _field(8, _number(2, 13))
    return ir_version + _field(7, graph) + opset


def _value(name: str, dtype: str) -> bytes:
    """A ValueInfoProto of any shape."""
    tensor = _field(1, _number(1, _ELEMENTS[dtype]))
    return _field(1, name.encode()) + _field(2, tensor)


def _field(number: int, content: bytes) -> bytes:
    """A field with bytes, fewer than 128, in protobuf's encoding."""
    return bytes([number << 3 | 2, len(content)]) + content


def _number(number: int, value: int) -> bytes:
    """A field with a number below 128."""
    return bytes([number << 3, value])
