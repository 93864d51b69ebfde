"""FP32 graph to INT8 graph with explicit Q/DQ, by the rules that keep a ViT intact.

Quantised are the patch embedding and the linear layers of the blocks and of the fusion: per-channel
symmetric weights, stored as int8, and per-tensor symmetric activations at their inputs. Left alone
are attention products, softmax, LayerNormalization, GELU, residual sums, the head, and everything
that feeds the score. Quantising those too costs a ViT nearly all of its accuracy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import onnx
import onnx_graphsurgeon as gs
from onnxruntime.quantization import QDQQuantizer, QuantType

from sacvit_deploy.exporters.precision.calibrate import quantised_nodes

if TYPE_CHECKING:
    from onnxruntime.quantization import TensorsData

_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    # TensorRT takes no int32 bias with a scale.
    "QuantizeBias": False,
    # What follows a product stays float, so it is not rounded a second time.
    "OpTypesToExcludeOutputQuantization": ["MatMul", "Conv"],
}


def int8_model(
    model: onnx.ModelProto, ranges: TensorsData, keep: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """The same graph with Q/DQ around its linear layers; inputs and outputs stay as they are.

    Args:
        model: FP32 graph, with its weights.
        ranges: Of the inputs of its linear layers.
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
        op_types_to_quantize=["MatMul", "Conv"],
        extra_options=_OPTIONS,
    )
    quantizer.quantize_model()
    return _tidied(quantizer.model.model, model)


def _tidied(quantised: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """Sorted, without unused tensors, and without what the quantiser says of itself."""
    graph = gs.import_onnx(quantised)
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    result = cast("onnx.ModelProto", gs.export_onnx(graph, do_type_check=False))
    del result.metadata_props[:]
    result.metadata_props.extend(original.metadata_props)
    return result
