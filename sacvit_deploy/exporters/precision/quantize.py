"""FP32 graph to INT8 graph with explicit Q/DQ, by the rules that keep a ViT intact.

Quantised are the linear layers of the blocks and of the fusion: per-channel symmetric weights,
stored as int8, and per-tensor symmetric activations at their inputs. Left alone are attention
products, softmax, LayerNormalization, GELU, residual sums, the head, and everything that feeds the
score: quantising those too costs a ViT nearly all of its accuracy. So is the patch embedding, which
is about one percent of the work, and whose rounding would reach every token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantType

from sacvit_deploy.errors import PrecisionError
from sacvit_deploy.exporters.precision.calibrate import linear_layers, quantised_nodes
from sacvit_deploy.exporters.precision.rounding import rounded_weight

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxruntime.quantization import TensorsData

    from sacvit_deploy.exporters.precision.channels import Channels
    from sacvit_deploy.exporters.precision.rounding import RoundedWeight
    from sacvit_deploy.spec import Role

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
