"""Weights to INT8 such that a layer's output changes least.

Frantar et al., "GPTQ" (ICLR 2023), Algorithm 1: the inputs of a linear layer are rounded one after
the other, and what rounding one of them changes in the output is made up for, as far as it can be,
by those that are still to come. Nothing but the second moment of what the layer takes in is needed.
Against rounding to nearest it leaves about a quarter of the squared error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantType

from sacvit_deploy.comparison.graphs import linear_layers, quantised_nodes
from sacvit_deploy.errors import PrecisionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from onnxruntime.quantization import TensorsData

    from sacvit_deploy.exporters.precision.ranges import Channels
    from sacvit_deploy.spec import Role

    Array = NDArray[Any]


LEVELS = 127
"""Symmetric INT8: from -127 to 127."""

# Half precision holds nothing smaller, and a scale must not be zero.
_SMALLEST_SCALE = 2.0**-24
_SMALLEST = 1e-8
# Share of the mean of the Hessian's diagonal that is added to it, as in the paper.
_DAMPING = 0.01
# Corrections reach beyond so many inputs only once for all of them, which is far faster.
_BLOCK = 128


@dataclass(frozen=True)
class RoundedWeight:
    """A weight in INT8, one scale for each output.

    Attributes:
        values: (inputs, outputs), int8.
        scale: (outputs,), float32; the weight is `values * scale`.
    """

    values: Array
    scale: Array


def rounded_weight(weight: Array, moment: Array) -> RoundedWeight:
    """Round a linear layer's weight.

    Args:
        weight: (inputs, outputs), float32.
        moment: E[x x^T] of what the layer takes in, (inputs, inputs), float64.
    """
    scale = np.maximum(np.abs(weight).max(axis=0) / LEVELS, _SMALLEST_SCALE)
    hessian = moment.copy()
    mean = float(np.diag(hessian).mean())
    hessian += np.eye(len(hessian)) * max(_DAMPING * mean, _SMALLEST)
    # The largest first, while there are still others to make up for them.
    order = np.argsort(-np.diag(hessian), kind="stable")
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    passed_on = np.linalg.cholesky(inverse).T
    values = np.empty(weight.shape, np.int8)
    values[order] = _one_after_the_other(weight[order].astype(np.float64), scale, passed_on)
    return RoundedWeight(values, scale.astype(np.float32))


def _one_after_the_other(weight: Array, scale: Array, passed_on: Array) -> Array:
    """Algorithm 1 with rows for its columns; `passed_on` is its upper Cholesky factor."""
    values = np.empty(weight.shape, np.int8)
    for start in range(0, len(weight), _BLOCK):
        stop = min(start + _BLOCK, len(weight))
        errors = np.empty((stop - start, weight.shape[1]))
        for row in range(start, stop):
            values[row] = np.clip(np.rint(weight[row] / scale), -LEVELS, LEVELS)
            error = (weight[row] - values[row] * scale) / passed_on[row, row]
            weight[row + 1 : stop] -= np.outer(passed_on[row, row + 1 : stop], error)
            errors[row - start] = error
        weight[stop:] -= passed_on[start:stop, stop:].T @ errors
    return values


_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    # TensorRT takes no int32 bias with a scale.
    "QuantizeBias": False,
    # What follows a product stays float, so it is not rounded a second time.
    "OpTypesToExcludeOutputQuantization": ["MatMul"],
}


def rounded_weights(
    models: Mapping[Role, onnx.ModelProto], taken: Mapping[str, Channels]
) -> dict[Role, dict[str, RoundedWeight]]:
    """The weights of all linear layers in INT8, by role and by the name of the MatMul.

    Graphs that share a weight get the same values, so that they still share it.

    Args:
        models: FP32 graphs, whose nodes have their places in the network.
        taken: By place, what each layer takes in.

    Raises:
        PrecisionError: A layer took in values that are not finite.
    """
    by_place: dict[str, RoundedWeight] = {}
    found: dict[Role, dict[str, RoundedWeight]] = {}
    for role, model in models.items():
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        found[role] = {}
        for place, node in linear_layers(model, role).items():
            if place not in by_place:
                _check_finite(taken[place], place)
                weight = numpy_helper.to_array(stored[node.input[1]])
                by_place[place] = rounded_weight(weight, taken[place].moment)
            found[role][node.name] = by_place[place]
    return found


def _check_finite(channels: Channels, place: str) -> None:
    if not np.isfinite(channels.moment).all():
        raise PrecisionError(
            f"On the calibration pictures {place} takes in values that are not finite in FP32.",
            "Check the checkpoint, or take other pictures.",
        )


def int8_model(
    model: onnx.ModelProto,
    ranges: TensorsData,
    weights: Mapping[str, RoundedWeight],
    keep: frozenset[str] = frozenset(),
) -> onnx.ModelProto:
    """The same graph with Q/DQ around its linear layers; inputs and outputs stay as they are.

    Args:
        model: FP32 graph, with its weights.
        ranges: Of the inputs of its linear layers.
        weights: Of its linear layers, by the name of the node.
        keep: Names of nodes to leave in FP32.
    """
    source = onnx.ModelProto()
    source.CopyFrom(model)
    chosen = [node.name for node in quantised_nodes(source) if node.name not in keep]
    # The quantiser takes an empty list for all nodes.
    if not chosen:
        return source
    quantizer = QDQQuantizer(
        source,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=chosen,
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        extra_options=_OPTIONS,
    )
    quantizer.quantize_model()
    quantised = quantizer.model.model
    _put_weights(quantised, {name: weights[name] for name in chosen})
    return _tidied(quantised, model)


def _put_weights(quantised: onnx.ModelProto, weights: Mapping[str, RoundedWeight]) -> None:
    """In the place of what the quantiser has rounded to nearest."""
    stored = {tensor.name: tensor for tensor in quantised.graph.initializer}
    makers = {node.output[0]: node for node in quantised.graph.node}
    for node in quantised.graph.node:
        if node.name in weights:
            weight = weights[node.name]
            values, scale = makers[node.input[1]].input[:2]
            stored[values].CopyFrom(numpy_helper.from_array(weight.values, values))
            stored[scale].CopyFrom(numpy_helper.from_array(weight.scale, scale))


def _tidied(quantised: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """Sorted, without unused tensors, and without what the quantiser says of itself."""
    graph = gs.import_onnx(quantised)
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    result = cast("onnx.ModelProto", gs.export_onnx(graph, do_type_check=False))
    del result.metadata_props[:]
    result.metadata_props.extend(original.metadata_props)
    return result
