from __future__ import annotations

import json
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sacvit_deploy.engines.plan_inspection import (
    Layer,
    PrecisionShare,
    check_plan,
    check_precision,
    precision_share,
)
from sacvit_deploy.engines.tensorrt_library import Library
from sacvit_deploy.errors import EngineError
from sacvit_deploy.spec import Precision


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
        check_precision(share, "ee.onnx", "fp32")


def shares(half: float = 0, int8: float = 0) -> dict[str, float]:
    return {"half": half, "int8": int8, "float": 1 - half - int8}


@pytest.mark.parametrize(
    ("asked", "weights", "linear"),
    [
        ("fp32", shares(), shares()),
        ("fp16", shares(half=0.90), shares(half=1)),
        ("int8", shares(int8=0.5), shares(int8=0.8)),
        ("int8", shares(int8=0.5, half=0.5), shares(int8=0.9, half=0.1)),
    ],
)
def test_what_was_asked_for_passes(asked, weights, linear):
    check_precision(PrecisionShare(weights, linear, {}), "ee.onnx", asked)


@pytest.mark.parametrize(
    ("asked", "weights", "linear"),
    [
        ("fp32", shares(half=1e-7), shares()),
        ("fp16", shares(half=0.899), shares(half=1)),
        ("fp16", shares(int8=1), shares(int8=1)),
        ("int8", shares(int8=0.9), shares(int8=0.79)),
        ("int8", shares(), shares()),
        ("fp16", shares(), shares()),
    ],
)
def test_anything_else_is_refused(asked, weights, linear):
    with pytest.raises(EngineError, match=f"ee.onnx is not {asked}.*Nothing was written"):
        check_precision(PrecisionShare(weights, linear, {}), "ee.onnx", asked)


def test_what_was_kept_on_purpose_is_not_asked_for():
    """With nodes kept in FP32 on request, the recorded share is needed."""
    half = PrecisionShare(shares(half=0.68), shares(), {})
    check_precision(half, "ee.onnx", "fp16", kept_share=0.7)
    less = PrecisionShare(shares(half=0.6), shares(), {})
    with pytest.raises(EngineError, match="65% half are needed"):
        check_precision(less, "ee.onnx", "fp16", kept_share=0.7)
    none = PrecisionShare(shares(), shares(), {})
    with pytest.raises(EngineError):
        check_precision(none, "ee.onnx", "fp16", kept_share=0.0)


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
            check_precision(precision_share([]), "ee.onnx", asked)


# As TensorRT writes uint8 and int64; neither makes an engine int8.
INPUTS = {"image": "UInt8", "survivor_rows": "Row major linear INT8 format"}
DYNAMIC = "N/A due to dynamic shapes"


def described(name: str, dtype: str, release: int) -> dict[str, object]:
    """A tensor of a layer, as TensorRT 10 and 11 describe it."""
    if release == 10:
        return {"Name": name, "Dimensions": [-1, 2], "Format/Datatype": dtype}
    how = "N/A due to dynamic shapes"
    return {"Name": name, "Dimensions": [-1, 2], "DataType": dtype, "Format": how}


def outside(name: str, dtype: str) -> dict[str, object]:
    """An input as TensorRT 11 lists it; TensorRT 10 lists names only."""
    profile = {"MinShape": [1, 2], "Format": "Row major linear FP16 format (kLINEAR)"}
    return {"Name": name, "IOMode": "Input", "DataType": dtype, "ProfileInfo": [profile]}


def library(*types: str, opens: bool = True, metadata: str = "", release: int = 10) -> Library:
    """Its inspector shows two inputs, and inner tensors of these types."""
    tensors = [described(name, dtype, release) for name, dtype in INPUTS.items()]
    tensors += [described(f"inner {dtype}", dtype, release) for dtype in types]
    layers = [{"Name": "x", "Inputs": [], "Outputs": tensors, "Metadata": "METADATA"}]
    lists: dict[int, dict[str, object]] = {
        10: {"Bindings": [*INPUTS]},
        11: {"I/O Tensors": [outside(*each) for each in INPUTS.items()]},
    }
    text = json.dumps({"Layers": layers, **lists[release]}).replace("METADATA", metadata)

    class Logger:
        VERBOSE = "verbose"

        def __init__(self) -> None:
            pass

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, plan):
            if not opens:
                self._logger.log(SimpleNamespace(name="ERROR"), "wrong GPU")
                return None
            inspector = SimpleNamespace(get_engine_information=lambda kind: text)
            return SimpleNamespace(
                create_engine_inspector=lambda: inspector,
                num_io_tensors=len(INPUTS),
                get_tensor_name=list(INPUTS).__getitem__,
            )

    module = ModuleType("tensorrt")
    module.__dict__.update(
        ILogger=Logger,
        Runtime=Runtime,
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        __version__=f"{release}.3.0",
    )
    return Library("tensorrt", module)


def checked(*types: str, precision: Precision = "fp16", **how: Any) -> tuple[str, str]:
    return check_plan(library(*types, **how), memoryview(b"plan"), precision)


_RELEASES = pytest.mark.parametrize("release", [10, 11])


@_RELEASES
@pytest.mark.parametrize(
    ("precision", "types"),
    [
        ("fp32", ()),
        ("fp16", ("Float", "Half")),
        ("fp16", ("Row major linear FP16 format",)),
        ("int8", ("Int8",)),
        ("int8", ("Row major INT8 format", "Half")),
    ],
)
def test_an_engine_of_that_type_passes(precision, types, release):
    severity, said = checked(*types, precision=precision, release=release)
    assert severity == "INFO"
    assert "network only" not in said


@_RELEASES
@pytest.mark.parametrize(
    ("precision", "types", "shown"),
    [
        ("fp16", ("Float", "Float", "Int32"), "Float, Int32"),
        ("int8", ("Half", "Half", "Half"), "Half"),
        ("int8", ("Linear UInt8 format", "Float", "Float"), "Float, Linear UInt8"),
    ],
)
def test_an_engine_that_fell_back_is_refused(precision, types, shown, release):
    with pytest.raises(EngineError, match=f"is not {precision}: its inspector shows {shown}"):
        checked(*types, precision=precision, release=release)


@_RELEASES
@pytest.mark.parametrize("types", [("Float",), ("Float", "Float")])
def test_a_copy_of_the_picture_is_no_reason_to_refuse_a_good_engine(types, release):
    """The body is one node, and the tensors that are left are those of inputs and outputs."""
    severity, said = checked(*types, release=release)
    assert severity == "WARNING"
    assert f"shows only {len(types)} of the tensors inside the engine, of the types Float" in said
    assert "proven from the network only" in said


@pytest.mark.parametrize("types", [(), (DYNAMIC,), ("Float", DYNAMIC)])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_inspector_that_does_not_show_the_types_refuses_nothing(precision, types):
    """Engines for several batch sizes show few of them; the network was checked before."""
    severity, said = checked(*types, precision=precision)
    assert severity == "INFO"
    assert "proven from the network only" in said


@pytest.mark.parametrize("metadata", ['a "quoted" name', "two\nlines", "{ unbalanced"])
def test_a_document_that_is_no_json_is_read(metadata):
    assert "of the types Half." in checked("Half", metadata=metadata)[1]
    with pytest.raises(EngineError, match="shows Float"):
        checked("Float", "Float", "Float", metadata=metadata)


def test_an_engine_that_does_not_open_says_why():
    with pytest.raises(EngineError, match="cannot open the engine it has built:\n  wrong GPU"):
        check_plan(library("Half", opens=False), memoryview(b"plan"), "fp16")
