"""An ONNX graph of nothing but matrix products, written without the onnx library.

The limit has to be measured where the bundle runs, and the onnx library is not there. The few
messages that are needed are in protobuf's wire format; numbers are those of `onnx.proto`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sacvit_deploy.benchmark.limit.products import Product, random_operand
from sacvit_deploy.spec import TensorSpec

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
_SCALE, _MIDDLE, _ZERO, _FIRST = "scale", "middle", "zero", "first"


@dataclass(frozen=True)
class ProductGraph:
    """A graph that computes each product once.

    Attributes:
        content: Content of the `.onnx` file.
        inputs: Inputs; the first axis of each is dynamic.
        outputs: The first row of each result.
    """

    content: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def product_graph(products: Sequence[Product], seed: int = 0) -> ProductGraph:
    """Write a graph that computes each product once.

    Each product has weights of its own, as in a network: weights that were used before would still
    be in the cache. Only the first row of a result leaves the graph, since copying all of it is no
    part of a product. INT8 operands are quantized in the graph, once for all products of their
    shape; backends know an INT8 product by that pattern.

    Args:
        products: The products.
        seed: Seed of the weights.
    """
    generator = np.random.default_rng(seed)
    inputs = {spec.name: spec for n, each in enumerate(products) for spec in input_specs(n, each)}
    outputs = [_answer(number, each) for number, each in enumerate(products)]
    parts = [
        _text(_GRAPH_NAME, "products"),
        _tensor(_SCALE, np.array(0.05, np.float32)),
        _tensor(_MIDDLE, np.array(128, np.uint8)),
        _tensor(_ZERO, np.array(0, np.int8)),
        _tensor(_FIRST, np.array(0, np.int64)),
        *(_value(_GRAPH_INPUT, spec) for spec in inputs.values()),
        *(_value(_GRAPH_OUTPUT, spec) for spec in outputs),
    ]
    shared = {n: each for n, each in enumerate(products) if each.dtype == "uint8"}
    quantized = {spec.name for number, each in shared.items() for spec in input_specs(number, each)}
    for name in sorted(quantized):
        packed = f"{name}_int8"
        parts.append(_node("QuantizeLinear", [name, _SCALE, _MIDDLE], packed))
        parts.append(_node("DequantizeLinear", [packed, _SCALE, _MIDDLE], f"{name}_wide"))
    for number, product in enumerate(products):
        parts += _product(number, product, generator)
    message = _number(_MODEL_IR, _IR_VERSION)
    message += _field(_MODEL_OPSET, _number(_OPSET_VERSION, _OPSET))
    message += _field(_MODEL_GRAPH, b"".join(parts))
    return ProductGraph(message, tuple(inputs.values()), tuple(outputs))


def input_specs(number: int, product: Product) -> tuple[TensorSpec, ...]:
    """Inputs of one product: both operands, or the left one beside weights.

    Products of one shape share them, except for the left one of a pair: two products of the same
    pair would be computed once. The first axis is dynamic: pictures, or the heads of all pictures.
    """
    dtype = _float_type(product)
    kind = "int8" if product.dtype == "uint8" else dtype
    rows, inner, columns = product.rows, product.inner, product.columns
    if product.has_weights:
        return (TensorSpec(f"left_{kind}_{rows}x{inner}", dtype, ("pictures", rows, inner)),)
    axis = f"heads{product.heads}"
    right = f"right_{kind}_{product.heads}x{inner}x{columns}"
    return (
        TensorSpec(f"left{number}", dtype, (axis, rows, inner)),
        TensorSpec(right, dtype, (axis, inner, columns)),
    )


def _answer(number: int, product: Product) -> TensorSpec:
    """First row of a result."""
    return TensorSpec(f"answer{number}", _float_type(product), (product.columns,))


def _float_type(product: Product) -> Literal["float16", "float32"]:
    return "float16" if product.dtype == "float16" else "float32"


def _product(number: int, product: Product, generator: np.random.Generator) -> list[bytes]:
    """Weights and nodes of one product."""
    parts = []
    is_int8 = product.dtype == "uint8"
    names = [f"{s.name}_wide" if is_int8 else s.name for s in input_specs(number, product)]
    if product.has_weights:
        weights, kind = f"weights{number}", "int8" if is_int8 else _float_type(product)
        shape = (product.inner, product.columns)
        parts.append(_tensor(weights, random_operand(shape, kind, generator)))
        names.append(weights)
        if is_int8:
            names[-1] = f"{weights}_wide"
            parts.append(_node("DequantizeLinear", [weights, _SCALE, _ZERO], names[-1]))
    result, row = f"result{number}", f"row{number}"
    parts.append(_node("MatMul", names, result))
    if is_int8 and product.has_weights:
        # Both backends join the bias with the product. Without it, OpenVINO 2026.4 crashes.
        bias, result = f"bias{number}", f"biased{number}"
        parts.append(_tensor(bias, np.ones(product.columns, np.float32)))
        parts.append(_node("Add", [f"result{number}", bias], result))
    parts.append(_node("Gather", [result, _FIRST], row))
    parts.append(_node("Gather", [row, _FIRST], f"answer{number}"))
    return parts


def _node(operator: str, inputs: Sequence[str], output: str) -> bytes:
    message = b"".join(_text(_NODE_INPUT, name) for name in inputs)
    message += _text(_NODE_OUTPUT, output) + _text(_NODE_OPERATOR, operator)
    return _field(_GRAPH_NODE, message)


def _tensor(name: str, array: NDArray[Any]) -> bytes:
    message = b"".join(_number(_TENSOR_DIMS, side) for side in array.shape)
    message += _number(_TENSOR_TYPE, _TYPES[array.dtype.name]) + _text(_TENSOR_NAME, name)
    return _field(_GRAPH_INITIALIZER, message + _field(_TENSOR_DATA, array.tobytes()))


def _value(field: int, spec: TensorSpec) -> bytes:
    """An input or output; a side with a name is of any length."""
    sides = (b"" if isinstance(side, str) else _number(_SIDE_VALUE, side) for side in spec.shape)
    tensor = _number(_ELEMENT, _TYPES[spec.dtype])
    tensor += _field(_SHAPE, b"".join(_field(_SIDE, side) for side in sides))
    kind = _field(_VALUE_TYPE, _field(_TYPE_TENSOR, tensor))
    return _field(field, _text(_VALUE_NAME, spec.name) + kind)


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
