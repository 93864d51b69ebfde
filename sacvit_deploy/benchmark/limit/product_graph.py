"""An ONNX graph of nothing but matrix products, written without the onnx library.

The limit has to be measured where the bundle runs, and the onnx library is not there. The few
messages that are needed are in protobuf's wire format; numbers are those of `onnx.proto`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.benchmark.limit.products import Product, random_operand

_IR_VERSION, _OPSET = 8, 17
# Fields of each message.
_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSET = 1, 7, 8
_OPSET_VERSION = 2
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 2, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR = 1, 2, 4
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_DATA = 1, 2, 8, 9
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _ELEMENT, _SHAPE, _SIDE, _SIDE_VALUE = 1, 2, 1, 1, 2, 1, 1
# onnx.TensorProto.DataType
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7, "float16": 10}
_NAMES = {"float": "float32"}
_SCALE, _ZERO, _FIRST = "scale", "zero", "first"


def dtype_of(product: Product) -> str:
    """Numpy's name of the type of the operands."""
    return _NAMES.get(product.dtype, product.dtype)


def input_names(number: int, product: Product) -> tuple[str, ...]:
    """Names of the inputs of one product; without weights there are two."""
    return (f"left{number}",) if product.has_weights else (f"left{number}", f"right{number}")


def product_graph(products: Sequence[Product], seed: int = 0) -> bytes:
    """Write a graph that computes each product once.

    Each product has weights of its own, as in a network: weights that were used before would still
    be in the cache. Only the first row of a result leaves the graph, since copying all of it is no
    part of a product. INT8 operands are dequantized in the graph, which a backend joins with the
    product.

    Args:
        products: The products; the number of rows and heads is left open.
        seed: Seed of the weights.

    Returns:
        Content of an `.onnx` file.
    """
    generator = np.random.default_rng(seed)
    scale = np.array(0.01, np.float32)
    parts = [
        _text(_GRAPH_NAME, "products"),
        _tensor(_SCALE, scale),
        _tensor(_FIRST, np.array(0, np.int64)),
        *(_tensor(f"{_ZERO}_{kind}", np.array(0, kind)) for kind in ("uint8", "int8")),
    ]
    for number, product in enumerate(products):
        parts += _product(number, product, generator)
    message = _number(_MODEL_IR, _IR_VERSION)
    message += _field(_MODEL_OPSET, _number(_OPSET_VERSION, _OPSET))
    return message + _field(_MODEL_GRAPH, b"".join(parts))


def _product(number: int, product: Product, generator: np.random.Generator) -> list[bytes]:
    """Inputs, weights, nodes and output of one product."""
    dtype = dtype_of(product)
    names = list(input_names(number, product))
    inner, columns = product.inner, product.columns
    if product.has_weights:
        kind = "int8" if dtype == "uint8" else dtype
        weights = random_operand((inner, columns), kind, generator)
        parts = [_value(_GRAPH_INPUT, names[0], dtype, (None, inner))]
        parts.append(_tensor(f"right{number}", weights))
        names.append(f"right{number}")
        kinds = [dtype, kind]
    else:
        shapes = (None, None, inner), (None, inner, None)
        parts = [_value(_GRAPH_INPUT, n, dtype, s) for n, s in zip(names, shapes, strict=True)]
        kinds = [dtype, dtype]
    if dtype in ("uint8", "int8"):
        for place, kind in enumerate(kinds):
            wide = f"{names[place]}_wide"
            parts.append(_node("DequantizeLinear", [names[place], _SCALE, f"{_ZERO}_{kind}"], wide))
            names[place] = wide
        dtype = "float32"
    result, row, answer = f"result{number}", f"row{number}", f"answer{number}"
    parts.append(_node("MatMul", names, result))
    if not product.has_weights:
        parts.append(_node("Gather", [result, _FIRST], row))
        result = row
    parts.append(_node("Gather", [result, _FIRST], answer))
    parts.append(_value(_GRAPH_OUTPUT, answer, dtype, (None,)))
    return parts


def _node(operator: str, inputs: Sequence[str], output: str) -> bytes:
    message = b"".join(_text(_NODE_INPUT, name) for name in inputs)
    message += _text(_NODE_OUTPUT, output) + _text(_NODE_OPERATOR, operator)
    return _field(_GRAPH_NODE, message)


def _tensor(name: str, array: NDArray[Any]) -> bytes:
    message = b"".join(_number(_TENSOR_DIMS, side) for side in array.shape)
    message += _number(_TENSOR_TYPE, _TYPES[array.dtype.name]) + _text(_TENSOR_NAME, name)
    return _field(_GRAPH_INITIALIZER, message + _field(_TENSOR_DATA, array.tobytes()))


def _value(field: int, name: str, dtype: str, shape: Sequence[int | None]) -> bytes:
    """An input or output; None is a side of any length."""
    sides = (b"" if side is None else _number(_SIDE_VALUE, side) for side in shape)
    tensor = _number(_ELEMENT, _TYPES[dtype])
    tensor += _field(_SHAPE, b"".join(_field(_SIDE, side) for side in sides))
    kind = _field(_VALUE_TYPE, _field(_TYPE_TENSOR, tensor))
    return _field(field, _text(_VALUE_NAME, name) + kind)


def _text(field: int, text: str) -> bytes:
    return _field(field, text.encode())


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the eighth set."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
