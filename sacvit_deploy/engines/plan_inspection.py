"""Proof of precision: the types in a network before it is built, and in the engine afterwards.

Networks are strongly typed, so the builder keeps their types. It remains to show that the network
has the requested ones. A weight counts with the bytes it is stored in and the type in which it
reaches the arithmetic: half precision values that are cast to float before a MatMul are float.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

from sacvit_deploy.engines.tensorrt_library import Library
from sacvit_deploy.errors import EngineError
from sacvit_deploy.spec import Precision

# Which weights count, the type they need, and the share that is enough.
_NEEDED: dict[Precision, tuple[str, str, float]] = {
    "fp32": ("all weights", "float", 1.0),
    # The scales and biases of LayerNormalization are FP32: 5 % of the weights of a tiny backbone.
    "fp16": ("all weights", "half", 0.90),
    "int8": ("linear weights", "int8", 0.80),
}
# A weight may be stored in one type and computed in another, such as a head kept in float.
_KEPT_SLACK = 0.05

_KINDS = {"FLOAT": "float", "HALF": "half", "INT8": "int8"}
_OTHER = "other"
_BYTES = {"FLOAT": 4.0, "HALF": 2.0, "BF16": 2.0, "INT8": 1.0, "FP8": 1.0, "INT4": 0.5, "FP4": 0.5}
# Layers that change the layout or type of a weight and compute nothing.
_LAYOUT = {"SHUFFLE", "IDENTITY"}
_RETYPE = {"CAST", "QUANTIZE"}
_LINEAR = {"MATRIX_MULTIPLY", "CONVOLUTION"}
_NO_ARITHMETIC = _LAYOUT | _RETYPE | {"DEQUANTIZE", "CONSTANT"}

# Releases write "Half", "Row major linear FP16 format", "Int8", "... INT8 ...".
_SPELLINGS = {"fp16": re.compile("half|fp16", re.I), "int8": re.compile("(?<!u)int8", re.I)}
# A tensor in the inspector's document. It is read as text, since quotes in names of layers can make
# the document invalid JSON (NVIDIA/TensorRT#2779); a tensor itself holds no braces. TensorRT 10 has
# one field for format and type, TensorRT 11 has two.
_TYPE = re.compile(r'"(?:Format/Datatype|DataType)":\s*"([^"]*)"')
_TENSOR = re.compile(rf"\{{[^{{}}]*{_TYPE.pattern}[^{{}}]*\}}")
_NAME = re.compile(r'"Name":\s*"([^"]*)"')
# "N/A due to dynamic shapes" hides most types in engines with several batch sizes.
_NOT_SHOWN = "N/A"


class InspectionWarning(UserWarning):
    """The inspector shows a part of an engine, and the requested precision is not in it."""


class Finding(NamedTuple):
    """What an inspector shows, for the log of the engine: `INFO`, or `WARNING` for a doubt."""

    severity: str
    text: str


@dataclass(frozen=True)
class PrecisionShare:
    """Share of each type in a network: `half`, `int8`, `float`, and `other` if there is any.

    Attributes:
        weights: By bytes of all weights; adds up to 1.
        linear: By bytes of the weights of MatMul and convolution layers.
        layers: By number of the layers that compute.
    """

    weights: dict[str, float]
    linear: dict[str, float]
    layers: dict[str, float]


@dataclass(frozen=True)
class Layer:
    """One layer of a network, as plain data.

    Attributes:
        kind: Name of its `LayerType`.
        inputs: Names of the tensors it reads.
        output: Name of its first output.
        dtype: Name of the `DataType` of that output.
        elements: Size of a constant, or of a kernel stored inside the layer; else 0.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    dtype: str
    elements: int = 0


def network_layers(trt: ModuleType, network: Any) -> list[Layer]:
    """The layers of an `INetworkDefinition` as plain data."""
    layers = []
    for index in range(network.num_layers):
        trt_layer = network.get_layer(index)
        if not trt_layer.num_outputs:  # an assertion about shapes
            continue
        inputs = [trt_layer.get_input(position) for position in range(trt_layer.num_inputs)]
        tensor = trt_layer.get_output(0)
        layers.append(
            Layer(
                trt_layer.type.name,
                tuple(source.name for source in inputs if source is not None),
                tensor.name,
                tensor.dtype.name,
                _elements(trt, trt_layer),
            )
        )
    return layers


def _elements(trt: ModuleType, trt_layer: Any) -> int:
    if trt_layer.type == trt.LayerType.CONSTANT:
        return int(trt.volume(trt_layer.get_output(0).shape))
    if trt_layer.type != trt.LayerType.CONVOLUTION or trt_layer.num_inputs > 1:
        return 0
    # The parser stores a float or half kernel in the layer. Networks hand out the base class; the
    # bindings have no other way down to the fields of a kind. Its size is counted from the shape:
    # the values themselves would need the NumPy that the bindings were made with.
    trt_layer.__class__ = trt.IConvolutionLayer
    channels = trt_layer.get_input(0).shape[1] // trt_layer.num_groups
    return int(trt_layer.num_output_maps * channels * trt.volume(trt_layer.kernel_size_nd))


def precision_share(layers: Sequence[Layer]) -> PrecisionShare:
    """Count the types in a network; see `network_layers`."""
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer)
    weights: Counter[str] = Counter()
    linear: Counter[str] = Counter()
    for layer in layers:
        if layer.elements and layer.dtype in _BYTES:
            dtype, is_linear = _dtype_in_use(layer, readers)
            for sizes in (weights, linear) if is_linear else (weights,):
                sizes[dtype] += layer.elements * _BYTES[layer.dtype]  # type: ignore[assignment]
    return PrecisionShare(_shares(weights), _shares(linear), _shares(_computing(layers)))


def _dtype_in_use(weight: Layer, readers: Mapping[str, list[Layer]]) -> tuple[str, bool]:
    """The type in which a weight reaches the arithmetic, and whether that is a linear layer's."""
    if weight.kind in _LINEAR:
        return weight.dtype, True
    dtype, name, is_final = weight.dtype, weight.output, False
    while len(readers.get(name, ())) == 1:
        (reader,) = readers[name]
        if reader.kind not in _NO_ARITHMETIC or reader.inputs[0] != name:  # a scale comes second
            break
        if reader.kind in _RETYPE and not is_final and reader.dtype in _BYTES:
            dtype = reader.dtype
        # Behind it the values are of a wider type, and no more of them are stored.
        is_final = is_final or reader.kind == "DEQUANTIZE"
        name = reader.output
    return dtype, any(reader.kind in _LINEAR for reader in readers.get(name, ()))


def _computing(layers: Sequence[Layer]) -> Counter[str]:
    """Number of layers that compute in each type; those on integers, such as shapes, are out."""
    producers = {layer.output: layer for layer in layers}
    found: Counter[str] = Counter()
    for layer in layers:
        if layer.kind in _NO_ARITHMETIC or layer.dtype not in _BYTES:
            continue
        is_int8 = layer.kind in _LINEAR and all(
            _is_dequantized(name, producers) for name in layer.inputs
        )
        found["INT8" if is_int8 else layer.dtype] += 1
    return found


def _is_dequantized(name: str, producers: Mapping[str, Layer]) -> bool:
    """Whether a tensor is int8 but for its scale; a MatMul of two such computes in int8."""
    producer = producers.get(name)
    while producer is not None and producer.kind in _LAYOUT:
        producer = producers.get(producer.inputs[0])
    return producer is not None and producer.kind == "DEQUANTIZE"


def _shares(sizes: Mapping[str, float]) -> dict[str, float]:
    total = sum(sizes.values())
    parts = dict.fromkeys(("half", "int8", "float"), 0.0)
    for dtype, size in sizes.items():
        kind = _KINDS.get(dtype, _OTHER)
        parts[kind] = parts.get(kind, 0.0) + size / total
    return parts


def check_precision(
    share: PrecisionShare, graph: str, precision: Precision, kept_share: float | None = None
) -> None:
    """Refuse the network of a graph, given by its types, if it is of another precision.

    Args:
        share: The types.
        graph: Name of the graph, for the error.
        precision: The requested precision.
        kept_share: Share of the weights that was converted, as recorded when the graph was made,
            if nodes were kept in FP32 on request; else None.

    Raises:
        EngineError: FP32 holds another type, FP16 less than 90 % half by weight bytes, or INT8
            less than 80 % int8 by bytes of linear weights.
    """
    of, kind, needed = _NEEDED[precision]
    if kept_share is not None:
        needed = min(needed, kept_share - _KEPT_SLACK)
    found = share.linear if of == "linear weights" else share.weights
    if found[kind] >= needed and found[kind] > 0:
        return
    shown = ", ".join(f"{part:.1%} {name}" for name, part in found.items())
    raise EngineError(
        f"The graph {graph} is not {precision}: of the bytes of {of} it has {shown}; "
        f"{needed:.0%} {kind} are needed. Nothing was written.",
        f"Make the graph again: sacvit-deploy export --precision {precision}.",
    )


def check_plan(library: Library, content: memoryview, precision: Precision) -> Finding:
    """Open an engine and look for tensors of the requested type; FP32 engines are not opened.

    The types of the network were checked before it was built. So an inspector that shows a part of
    the engine proves nothing: a body that is fused into one node shows no more than copies of its
    inputs and outputs, and the picture is FP32 in every precision.

    Returns:
        The result; a doubt if few tensors are shown, and none of the requested type.

    Raises:
        EngineError: It cannot be opened, or shows its body and no tensor is of the requested type.
    """
    if precision == "fp32":
        return Finding("INFO", "FP32 engines are not inspected.")
    types, outer = _inner_types(library, content)
    shown = ", ".join(sorted(set(types)))
    if any(_SPELLINGS[precision].search(text) for text in types):
        return Finding("INFO", f"The inspector shows tensors of the types {shown}.")
    proof = f"that the engine is {precision} was proven from the network only"
    if not types or any(text.startswith(_NOT_SHOWN) for text in types):
        what = f"which types the tensors have ({shown or 'none'})"
        return Finding("INFO", f"The inspector does not show {what}; {proof}.")
    if len(types) <= outer:
        count = f"{len(types)} of the tensors inside the engine, of the types {shown}"
        return Finding("WARNING", f"The inspector shows only {count}; {proof}.")
    raise EngineError(
        f"The engine is not {precision}: its inspector shows {shown}. Nothing was written.",
        f"Make the graph again: sacvit-deploy export --precision {precision}.",
    )


def _inner_types(library: Library, content: memoryview) -> tuple[list[str], int]:
    """The inspector's names for the types of inner tensors, and how many outer ones there are.

    The types of inputs and outputs say nothing about the arithmetic; some releases write INT64 as
    INT8 (NVIDIA/TensorRT#4048).
    """
    runtime = library.runtime()
    runtime.engine_host_code_allowed = True  # version compatible engines carry some; it is our own
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise EngineError(
            f"{library} cannot open the engine it has built:\n"
            + "\n".join(f"  {text}" for text in library.log.last_errors()),
            "See what this machine has with: sacvit-deploy doctor",
        )
    outer = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    inspector = engine.create_engine_inspector()
    kind = library.module.LayerInformationFormat.JSON
    tensors = [match[0] for match in _TENSOR.finditer(inspector.get_engine_information(kind))]
    inner = [tensor for tensor in tensors if _first(_NAME, tensor) not in outer]
    return [_first(_TYPE, tensor) for tensor in inner], len(outer)


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""
