"""INT8 graphs from FP32 graphs: Q/DQ around the linear layers, weights rounded by GPTQ.

Frantar et al., "GPTQ" (ICLR 2023), Algorithm 1: the inputs of a linear layer are rounded one after
the other, and the inputs still to come correct the error of the output as far as they can. Only the
second moment of the layer's input is needed. About a quarter of the squared error of rounding to
nearest is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantType, TensorsData

from sacvit_deploy.comparison.decisions import Decisions
from sacvit_deploy.comparison.graphs import Graph, matmuls, to_model
from sacvit_deploy.errors import PrecisionError
from sacvit_deploy.exporters.precision.half_precision import half_model
from sacvit_deploy.exporters.precision.ranges import (
    CalibratingSession,
    Channels,
    ChannelSession,
    channels_by_place,
)
from sacvit_deploy.exporters.precision.request import Method
from sacvit_deploy.exporters.precision.smooth import smooth, with_inserted
from sacvit_deploy.families import family_named
from sacvit_deploy.progress import OnProgress, Steps, silent
from sacvit_deploy.spec import Role

if TYPE_CHECKING:
    from sacvit_deploy.exporters.precision.conversion import Original


Array = NDArray[Any]

LEVELS = 127
"""Symmetric INT8: from -127 to 127."""

# Half precision holds nothing smaller, and a scale must not be zero.
_SMALLEST_SCALE = 2.0**-24
_SMALLEST = 1e-8
# Share of the mean of the Hessian's diagonal that is added to it, as in the paper.
_DAMPING = 0.01
# Corrections beyond so many inputs are made once for all of them, which is far faster.
_BLOCK = 128
_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    # TensorRT takes no int32 bias with a scale.
    "QuantizeBias": False,
    # The result of a product stays float, so it is not rounded a second time.
    "OpTypesToExcludeOutputQuantization": ["MatMul"],
}


@dataclass(frozen=True)
class Int8Conversion:
    """INT8 graphs of a bundle; see `Conversion`.

    Attributes:
        reference: Decisions of the FP32 graphs on the pictures.
        smoothed: FP32 graphs with smoothed channels, which INT8 starts from.
        smoothing: Strength for each place that was smoothed.
        weights: Weights of the linear layers, by role and name of the node.
        ranges: Ranges of the inputs of the linear layers, by role.
        left_float: Names of the linear layers' nodes that the family leaves in floating point, by
            role: FP32 in the first graph, half in the second.
    """

    reference: Decisions
    smoothed: Mapping[Role, Graph]
    smoothing: dict[str, float]
    weights: Mapping[Role, Mapping[str, RoundedWeight]]
    ranges: Mapping[Role, TensorsData]
    left_float: Mapping[Role, frozenset[str]]

    @classmethod
    def of(
        cls, original: Original, method: Method, on_progress: OnProgress = silent
    ) -> Int8Conversion:
        """Smooth, round and calibrate the FP32 graphs on the pictures.

        Raises:
            PrecisionError: A layer takes in values that are not finite.
        """
        scratch = original.scratch
        steps = Steps(on_progress, {"channels": 5, "weights": 4, "ranges": 3})
        observed = {
            role: ChannelSession(graph, scratch / f"{role}.channels.onnx", original.threads)
            for role, graph in original.graphs.items()
        }
        original.decisions(observed, steps.part("channels"), "collecting channels")
        taken = channels_by_place(original.graphs, observed)
        smoothed, smoothing = smooth(original.graphs, taken)
        taken |= {p: taken[p].mapped(each.centre, each.factor) for p, each in smoothing.items()}
        weights = rounded_weights(smoothed, taken, steps.part("weights"))
        calibrating = {
            role: CalibratingSession(
                session, smoothed[role].model, method, scratch / role, original.threads
            )
            for role, session in original.sessions().items()
        }
        return cls(
            reference=original.decisions(calibrating, steps.part("ranges"), "collecting ranges"),
            smoothed=smoothed,
            smoothing={place: each.strength for place, each in smoothing.items()},
            weights=weights,
            ranges={role: session.ranges() for role, session in calibrating.items()},
            left_float=_left_float(original),
        )

    def graphs(self, role: Role, kept: frozenset[str]) -> tuple[onnx.ModelProto, ...]:
        """See `Conversion.graphs`: first with the rest in FP32, then with the rest in half."""
        floats = kept | self.left_float[role]
        int8 = int8_model(self.smoothed[role].model, self.ranges[role], self.weights[role], floats)
        return int8, half_model(int8, with_inserted(kept))


def _left_float(original: Original) -> dict[Role, frozenset[str]]:
    config = original.bundle.manifest.config
    family = family_named(config.family)
    places = family.float_in_int8(config) if family.float_in_int8 else ()
    return {
        role: frozenset(n.name for p, n in graph.linear_layers.items() if p in places)
        for role, graph in original.graphs.items()
    }


def int8_model(
    model: onnx.ModelProto,
    ranges: TensorsData,
    weights: Mapping[str, RoundedWeight],
    keep: frozenset[str] = frozenset(),
) -> onnx.ModelProto:
    """The same graph with Q/DQ around its linear layers; inputs and outputs stay as they are.

    Args:
        model: FP32 graph, with its weights.
        ranges: Ranges of the inputs of its linear layers, by tensor.
        weights: Weights of its linear layers, by the name of the node.
        keep: Names of nodes to leave in FP32.
    """
    source = onnx.ModelProto()
    source.CopyFrom(model)
    chosen = [node.name for node in matmuls(source) if node.name not in keep]
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
    graph = gs.import_onnx(quantizer.model.model)
    for node in graph.nodes:
        if node.name in chosen:
            # In place of the weight that the quantiser rounded to nearest.
            stored, scale = node.i(1).inputs[:2]
            stored.values, scale.values = weights[node.name].values, weights[node.name].scale
    return to_model(graph.cleanup().toposort())


@dataclass(frozen=True)
class RoundedWeight:
    """A weight in INT8, one scale for each output.

    Attributes:
        values: (inputs, outputs), int8.
        scale: (outputs,), float32; the weight is `values * scale`.
    """

    values: Array
    scale: Array


def rounded_weights(
    graphs: Mapping[Role, Graph],
    taken: Mapping[str, Channels],
    on_progress: OnProgress = silent,
) -> dict[Role, dict[str, RoundedWeight]]:
    """Round the weights of all linear layers.

    Graphs that share a weight get the same values, so that they still share it.

    Args:
        graphs: FP32 graphs by role.
        taken: Input of each layer, by place.
        on_progress: Called before each layer.

    Returns:
        By role and by the name of the MatMul.

    Raises:
        PrecisionError: A layer takes in values that are not finite.
    """
    by_place: dict[str, RoundedWeight] = {}
    found: dict[Role, dict[str, RoundedWeight]] = {}
    for role, graph in graphs.items():
        stored = {tensor.name: tensor for tensor in graph.model.graph.initializer}
        found[role] = {}
        for place, node in graph.linear_layers.items():
            if place not in by_place:
                on_progress(len(by_place) / len(taken), f"rounding the weight of {place}")
                weight, moment = numpy_helper.to_array(stored[node.input[1]]), taken[place].moment
                if not np.isfinite(moment).all():
                    raise PrecisionError(
                        f"On the calibration pictures {place} takes in values that are not finite "
                        "in FP32.",
                        "Check the checkpoint, or take other pictures.",
                    )
                by_place[place] = rounded_weight(weight, moment)
            found[role][node.name] = by_place[place]
    return found


def rounded_weight(weight: Array, moment: Array) -> RoundedWeight:
    """Round the weight of a linear layer.

    Args:
        weight: (inputs, outputs), float32.
        moment: E[x x^T] of the layer's input, (inputs, inputs), float64.
    """
    scale = np.maximum(np.abs(weight).max(axis=0) / LEVELS, _SMALLEST_SCALE)
    hessian = moment.copy()
    mean = float(np.diag(hessian).mean())
    hessian += np.eye(len(hessian)) * max(_DAMPING * mean, _SMALLEST)
    # The largest first, while there are still others to correct their error.
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
