"""Weights in half precision on disk, and in single precision at work."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from sacvit_deploy.comparison.graphs import SINGLE, redirect

# Below this a Cast costs more bytes than it saves.
_SMALLEST_BYTES = 1024


def store_half(graph: gs.Graph) -> int:
    """Replace every large float32 constant that float16 holds exactly by a float16 one and a Cast.

    The weights of the model were rounded before, so all of them qualify. Constants that a pass
    computed stay float32: rounded once more, the patch embedding with the normalisation in it would
    differ by a thousandth. Backends fold the Cast when they load the graph, so that the speed is
    that of float32. `comparison.graphs.read_graph` undoes it in memory.

    Returns:
        Number of constants replaced.
    """
    changed = 0
    for name, constant in graph.tensors().items():
        if not isinstance(constant, gs.Constant) or constant.dtype != np.float32:
            continue
        if constant.values.nbytes < _SMALLEST_BYTES:
            continue
        with np.errstate(over="ignore"):
            values = constant.values.astype(np.float16)
        if not np.array_equal(values.astype(np.float32), constant.values):
            continue
        half = gs.Constant(f"{name}_half", values)
        single = gs.Variable(f"{name}{SINGLE}", np.float32, constant.values.shape)
        redirect(constant, single)
        cast = gs.Node("Cast", f"{name}_cast", {"to": TensorProto.FLOAT}, [half], [single])
        graph.nodes.insert(0, cast)
        changed += 1
    return changed
