"""Strongly typed FP16 graphs from FP32 graphs.

The converter of onnxruntime.transformers does not express the rules: a node it leaves in FP32 still
has its result rounded to half, so that the score would lose its ranking; and it clamps weights that
half cannot hold, which hides a collapse.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from sacvit_deploy.comparison.decisions import Decisions
from sacvit_deploy.comparison.graphs import redirect, to_model
from sacvit_deploy.progress import OnProgress, silent
from sacvit_deploy.spec import KEPT_MASK, LOGITS, SCORE, Role

if TYPE_CHECKING:
    from sacvit_deploy.exporters.precision.conversion import Original


# Resize reads its scales as FP32; a Cast names its own type. Half would move the places that
# GridSample reads by some hundredths of a cell in a wide picture. The statistics of a
# LayerNormalization are squares, which overflow in half from 256 on; TensorRT computes them in the
# type of its input, whatever `stash_type` says.
_ALWAYS_FLOAT = {"Resize", "GridSample", "Cast", "LayerNormalization"}
# Earlier operator sets quantise FP32 only.
_HALF_QUANTISATION_OPSET, _ITS_IR_VERSION = 19, 9


@dataclass(frozen=True)
class HalfConversion:
    """FP16 graphs of a bundle; see `Conversion`.

    Attributes:
        original: FP32 graphs and pictures.
        reference: Decisions of the FP32 graphs on the pictures.
        smoothing: None.
    """

    original: Original
    reference: Decisions
    smoothing: None = None

    @classmethod
    def of(cls, original: Original, on_progress: OnProgress = silent) -> HalfConversion:
        """Run the FP32 graphs on the pictures."""
        return cls(original, original.decisions(original.sessions(), on_progress, "running fp32"))

    def graphs(self, role: Role, kept: frozenset[str]) -> tuple[onnx.ModelProto, ...]:
        """See `Conversion.graphs`."""
        return (half_model(self.original.graphs[role].model, kept),)


def half_model(model: onnx.ModelProto, keep: frozenset[str] = frozenset()) -> onnx.ModelProto:
    """The same graph with half weights and tensors; inputs and outputs stay as they are.

    FP32 stay: the path from the attention of the class token to the score and to the choice of
    tokens, because neighbouring scores differ by 1e-6 to 1e-5; the last product of each gate and
    its decisions; the heads' products and what is made
    of them, because the exit acts on the softmax (their weights are stored in half); the resize;
    the reading of pictures at places, and the last product that gives the places; every
    LayerNormalization, with its scale and bias; and the nodes of `keep`. INT8 tensors stay INT8.

    Args:
        model: FP32 or INT8 graph, with its weights.
        keep: Names of nodes to compute in FP32.
    """
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
    decided = _decision_nodes(graph)
    floats = {node.name for node in graph.nodes if node.op in _ALWAYS_FLOAT} | decided | keep
    stored_half = {node.name for node in graph.nodes if node.op == "Gemm"} - keep
    _Typing(graph, floats, stored_half).apply()
    result = to_model(graph.cleanup().toposort())
    if any(node.op_type == "QuantizeLinear" for node in result.graph.node):
        result.ir_version = max(result.ir_version, _ITS_IR_VERSION)
        for opset in result.opset_import:
            if not opset.domain:
                opset.version = max(opset.version, _HALF_QUANTISATION_OPSET)
    return result


def _decision_nodes(graph: gs.Graph) -> set[str]:
    """Names of the nodes that decide: score, choice of tokens, gates, places to read, head."""
    outputs = {tensor.name: tensor for tensor in graph.outputs}
    starts = [outputs[name] for name in (SCORE, KEPT_MASK) if name in outputs]
    starts += [node.outputs[0] for node in graph.nodes if node.op == "TopK"]
    starts += [node.inputs[1] for node in graph.nodes if node.op == "GridSample"]
    heads = [outputs[LOGITS]] if LOGITS in outputs else []
    return _ancestors(starts, "MatMul") | _ancestors(heads, "Gemm")


def _ancestors(tensors: Iterable[gs.Tensor], last: str) -> set[str]:
    """Nodes above some tensors, up to and including the first operator `last` on each way."""
    found: set[str] = set()
    pending = list(tensors)
    while pending:
        for node in pending.pop().inputs:
            if node.name not in found:
                found.add(node.name)
                pending += [] if node.op == last else node.inputs
    return found


@dataclass
class _Typing:
    """Gives every tensor its type and puts Casts where two types meet.

    Attributes:
        graph: Changed in place.
        floats: Names of the nodes that compute in FP32.
        stored_half: Those of them whose weights are half all the same.
    """

    graph: gs.Graph
    floats: set[str]
    stored_half: set[str]
    _made: dict[str, gs.Tensor] = field(default_factory=dict, init=False)

    def apply(self) -> None:
        self._cast_pixels_at_once()
        nodes = list(self.graph.nodes)
        for node in nodes:
            if node.name not in self.floats:
                self._border_outputs(node)
        for node in nodes:
            if node.op == "Shape":
                continue
            wanted = np.float32 if node.name in self.floats else np.float16
            node.inputs = [self._as(tensor, wanted, node) for tensor in node.inputs]

    def _cast_pixels_at_once(self) -> None:
        """Make half of uint8 pixels that nothing reads in FP32; half holds 0 to 255 exactly."""
        for node in self.graph.nodes:
            if node.op != "Cast" or node.inputs[0].dtype != np.uint8:
                continue
            (pixels,) = node.outputs
            if not any(reader.name in self.floats for reader in pixels.outputs):
                node.attrs["to"] = TensorProto.FLOAT16
                pixels.dtype = np.dtype(np.float16)

    def _border_outputs(self, node: gs.Node) -> None:
        """Make results half; an output of the graph gets a Cast before it."""
        for index, tensor in enumerate(node.outputs):
            if tensor.dtype != np.float32:
                continue
            if tensor not in self.graph.outputs:
                tensor.dtype = np.float16
                continue
            inner = gs.Variable(f"{tensor.name}_half", np.float16, tensor.shape)
            redirect(tensor, inner)
            node.outputs[index] = inner
            self._cast(inner, tensor, TensorProto.FLOAT)

    def _as(self, tensor: gs.Tensor, wanted: type, reader: gs.Node) -> gs.Tensor:
        """The tensor in the type its reader computes in; integers and booleans stay."""
        if tensor.is_empty() or tensor.dtype not in (np.float32, np.float16):
            return tensor
        is_constant = isinstance(tensor, gs.Constant)
        if is_constant and (wanted == np.float16 or reader.name in self.stored_half):
            tensor = self._half(tensor)
        return tensor if tensor.dtype == wanted else self._converted(tensor, wanted)

    def _half(self, constant: gs.Constant) -> gs.Constant:
        """The constant in half, one for all its readers."""
        name = f"{constant.name}_half"
        if name not in self._made:
            # A value that half cannot hold becomes infinite, and the comparison finds it.
            with np.errstate(over="ignore"):
                self._made[name] = gs.Constant(name, constant.values.astype(np.float16))
        return self._made[name]

    def _converted(self, tensor: gs.Tensor, wanted: type) -> gs.Tensor:
        """A Cast of the tensor, one for all its readers."""
        name = f"{tensor.name}_as_{wanted.__name__}"
        if name not in self._made:
            to = TensorProto.FLOAT if wanted == np.float32 else TensorProto.FLOAT16
            self._made[name] = gs.Variable(name, wanted, tensor.shape)
            self._cast(tensor, self._made[name], to)
        return self._made[name]

    def _cast(self, source: gs.Tensor, target: gs.Tensor, to: int) -> None:
        name = f"cast_{target.name}"
        self.graph.nodes.append(gs.Node("Cast", name, {"to": to}, [source], [target]))
