"""Keep weights in half precision on disk and in single precision at work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto, numpy_helper

if TYPE_CHECKING:
    import onnx

# Below this a Cast costs more bytes than it saves.
_SMALLEST_BYTES = 1024
_STORED, _SINGLE = "_half", "_single"


def store_half(graph: gs.Graph) -> int:
    """Replace every large float32 constant by a float16 one and a Cast.

    Runtimes fold the Cast when they load the graph, so that the speed is that of float32. Values
    that float16 does not hold are rounded; the caller compares with a model rounded likewise.

    Returns:
        Number of constants replaced.
    """
    changed = 0
    for name, constant in graph.tensors().items():
        if not isinstance(constant, gs.Constant) or constant.dtype != np.float32:
            continue
        if constant.values.nbytes < _SMALLEST_BYTES:
            continue
        half = gs.Constant(f"{name}{_STORED}", constant.values.astype(np.float16))
        single = gs.Variable(f"{name}{_SINGLE}", np.float32, constant.values.shape)
        for node in list(constant.outputs):
            node.inputs = [single if tensor is constant else tensor for tensor in node.inputs]
        cast = gs.Node("Cast", f"{name}_cast", {"to": TensorProto.FLOAT}, [half], [single])
        graph.nodes.insert(0, cast)
        changed += 1
    return changed


def single_again(model: onnx.ModelProto) -> onnx.ModelProto:
    """Undo `store_half` in memory: float32 constants again, with the values float16 left of them.

    Passes and comparisons that look for constants do not see them behind a Cast.

    Returns:
        The same model, changed in place; constants of an FP16 graph stay as they are.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        stored = constants.get(node.input[0]) if node.op_type == "Cast" else None
        if stored is None or not node.output[0].endswith(_SINGLE):
            continue
        values = numpy_helper.to_array(stored).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        graph.initializer.remove(stored)
        graph.node.remove(node)
    return model
