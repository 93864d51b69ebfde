"""How much of a graph's weights is in which type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

_KINDS: dict[int, str] = {
    TensorProto.FLOAT16: "half",
    TensorProto.INT8: "int8",
    TensorProto.FLOAT: "float",
}


def weight_shares(model: onnx.ModelProto) -> dict[str, float]:
    """Share of the bytes of all constants in `half`, `int8` and `float`; indices do not count."""
    return _shares(model.graph.initializer)


def linear_weight_shares(model: onnx.ModelProto) -> dict[str, float]:
    """The same, of the weights of the patch embedding, the linear layers and the head only."""
    makers = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    names = set()
    for node in model.graph.node:
        if node.op_type not in {"MatMul", "Gemm", "Conv"}:
            continue
        name = node.input[1]
        if name in makers and makers[name].op_type in {"DequantizeLinear", "Cast"}:
            name = makers[name].input[0]
        names.add(name)
    return _shares(stored[name] for name in names & stored.keys())


def _shares(tensors: Iterable[onnx.TensorProto]) -> dict[str, float]:
    counts = dict.fromkeys(_KINDS.values(), 0)
    for tensor in tensors:
        if tensor.data_type in _KINDS:
            counts[_KINDS[tensor.data_type]] += numpy_helper.to_array(tensor).nbytes
    total = max(sum(counts.values()), 1)
    return {kind: count / total for kind, count in counts.items()}
