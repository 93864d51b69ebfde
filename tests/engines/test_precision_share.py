from __future__ import annotations

import pytest

from sacvit_deploy.engines.plan_inspection import (
    Layer,
    PrecisionDemand,
    PrecisionShare,
    precision_share,
)
from sacvit_deploy.errors import EngineError


def constant(name: str, dtype: str, elements: int) -> Layer:
    return Layer("CONSTANT", (), name, dtype, elements)


def matmul(*inputs: str, dtype: str = "FLOAT", output: str = "product") -> Layer:
    return Layer("MATRIX_MULTIPLY", inputs, output, dtype)


def retype(kind: str, source: str, target: str, dtype: str, *scales: str) -> Layer:
    return Layer(kind, (source, *scales), target, dtype)


def test_weights_count_by_bytes():
    layers = [
        constant("w", "HALF", 300),
        constant("b", "FLOAT", 50),
        matmul("x", "w", dtype="HALF"),
        Layer("ELEMENTWISE", ("product", "b"), "y", "FLOAT"),
    ]
    share = precision_share(layers)
    assert share.weights == pytest.approx({"half": 0.75, "int8": 0, "float": 0.25})
    assert share.linear == {"half": 1, "int8": 0, "float": 0}
    assert share.layers == {"half": 0.5, "int8": 0, "float": 0.5}


def test_indices_and_shapes_are_no_weights():
    share = precision_share(
        [
            constant("w", "FLOAT", 4),
            constant("shape", "INT64", 400),
            Layer("SHUFFLE", ("w", "shape"), "w2", "FLOAT"),
            matmul("x", "w2"),
            Layer("GATHER", ("shape", "shape"), "picked", "INT64"),
        ]
    )
    assert share.weights["float"] == 1
    assert share.layers["float"] == 1


@pytest.mark.parametrize(
    ("stored", "cast_to", "kind"), [("HALF", "FLOAT", "float"), ("FLOAT", "HALF", "half")]
)
def test_a_weight_counts_as_it_reaches_the_arithmetic(stored, cast_to, kind):
    layers = [
        constant("w", stored, 10),
        retype("CAST", "w", "cast", cast_to),
        Layer("SHUFFLE", ("cast",), "turned", cast_to),
        matmul("x", "turned", dtype=cast_to),
    ]
    share = precision_share(layers)
    assert share.weights[kind] == share.linear[kind] == 1


def test_a_constant_of_truth_values_stays_what_it_was_stored_as():
    share = precision_share([constant("w", "FLOAT", 3), retype("CAST", "w", "c", "BOOL")])
    assert share.weights["float"] == 1


def quantised(weight: list[Layer]) -> list[Layer]:
    return [
        *weight,
        constant("scale", "FLOAT", 1),
        retype("QUANTIZE", "x", "xq", "INT8", "scale"),
        retype("DEQUANTIZE", "xq", "xd", "FLOAT", "scale"),
        retype("DEQUANTIZE", "wq", "wd", "FLOAT", "scale"),
        Layer("SHUFFLE", ("wd",), "wt", "FLOAT"),
        matmul("xd", "wt"),
    ]


@pytest.mark.parametrize(
    "weight",
    [
        [constant("wq", "INT8", 999)],
        [constant("w", "FLOAT", 999), retype("QUANTIZE", "w", "wq", "INT8", "scale")],
    ],
    ids=["stored as int8", "quantised by the graph"],
)
def test_explicit_quantisation_is_int8(weight):
    share = precision_share(quantised(weight))
    assert share.linear == {"half": 0, "int8": 1, "float": 0}
    assert share.layers == {"half": 0, "int8": 1, "float": 0}
    assert 0 < share.weights["float"] < 0.01, "the scale"


def test_a_cast_behind_the_scale_does_not_hide_int8():
    layers = [
        constant("w", "INT8", 9),
        retype("DEQUANTIZE", "w", "wide", "FLOAT"),
        retype("CAST", "wide", "half", "HALF"),
        matmul("x", "half", dtype="HALF"),
    ]
    share = precision_share(layers)
    assert share.linear["int8"] == 1
    assert share.layers["half"] == 1, "int8 weights only: the layer computes in half precision"


def test_a_kernel_inside_a_convolution_is_a_linear_weight():
    share = precision_share([Layer("CONVOLUTION", ("x",), "y", "HALF", 64)])
    assert share.linear["half"] == share.weights["half"] == 1


def test_another_type_is_not_counted_as_one_of_the_three():
    share = precision_share([constant("w", "BF16", 8), matmul("x", "w", dtype="BF16")])
    assert share.weights == {"half": 0, "int8": 0, "float": 0, "other": 1}
    with pytest.raises(EngineError, match=r"100\.0% other"):
        PrecisionDemand("fp32").check(share, "ee.onnx")


def shares(half: float = 0, int8: float = 0) -> dict[str, float]:
    return {"half": half, "int8": int8, "float": 1 - half - int8}


@pytest.mark.parametrize(
    ("asked", "weights", "linear"),
    [
        ("fp32", shares(), shares()),
        ("fp16", shares(half=0.95), shares(half=1)),
        ("int8", shares(int8=0.5), shares(int8=0.8)),
        ("int8", shares(int8=0.5, half=0.5), shares(int8=0.9, half=0.1)),
    ],
)
def test_what_was_asked_for_passes(asked, weights, linear):
    PrecisionDemand(asked).check(PrecisionShare(weights, linear, {}), "ee.onnx")


@pytest.mark.parametrize(
    ("asked", "weights", "linear"),
    [
        ("fp32", shares(half=1e-7), shares()),
        ("fp16", shares(half=0.949), shares(half=1)),
        ("fp16", shares(int8=1), shares(int8=1)),
        ("int8", shares(int8=0.9), shares(int8=0.79)),
        ("int8", shares(), shares()),
        ("fp16", shares(), shares()),
    ],
)
def test_anything_else_is_refused(asked, weights, linear):
    with pytest.raises(EngineError, match=f"ee.onnx is not {asked}.*Nothing was written"):
        PrecisionDemand(asked).check(PrecisionShare(weights, linear, {}), "ee.onnx")


def test_what_was_kept_on_purpose_is_not_asked_for():
    """Nodes that somebody named to stay in FP32; what the maker of the graph recorded is needed."""
    half = PrecisionShare(shares(half=0.68), shares(), {})
    PrecisionDemand("fp16", kept_share=0.7).check(half, "ee.onnx")
    with pytest.raises(EngineError, match="65% half are needed"):
        PrecisionDemand("fp16", kept_share=0.7).check(
            PrecisionShare(shares(half=0.6), shares(), {}), "ee.onnx"
        )
    with pytest.raises(EngineError):
        PrecisionDemand("fp16", kept_share=0.0).check(
            PrecisionShare(shares(), shares(), {}), "ee.onnx"
        )


def test_bytes_are_those_that_are_stored():
    """A head in half precision, cast for a product in float, beside a body of the same size."""
    layers = [
        constant("body", "HALF", 10),
        matmul("x", "body", dtype="HALF"),
        constant("head", "HALF", 10),
        retype("CAST", "head", "wide", "FLOAT"),
        matmul("product", "wide", output="logits"),
    ]
    assert precision_share(layers).weights == {"half": 0.5, "int8": 0, "float": 0.5}


def test_a_network_without_weights_is_no_precision_at_all():
    for asked in ("fp32", "fp16", "int8"):
        with pytest.raises(EngineError, match="is not"):
            PrecisionDemand(asked).check(precision_share([]), "ee.onnx")
