"""Only a GPU opens an engine; here the library is a stand-in with the names of the real one."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from sacvit_deploy.engines.plan_inspection import check_plan
from sacvit_deploy.engines.tensorrt_library import Flavour
from sacvit_deploy.errors import EngineError

# As TensorRT writes uint8 and int64; neither makes an engine int8.
INPUTS = {"image": "UInt8", "survivor_rows": "Row major linear INT8 format"}
DYNAMIC = "N/A due to dynamic shapes"


def flavour(*types: str, opens: bool = True, metadata: str = "") -> Flavour:
    """Its inspector shows two inputs and, between them and nothing, tensors of these types."""
    tensors = [
        *({"Name": name, "Dimensions": [-1], "Format/Datatype": t} for name, t in INPUTS.items()),
        *({"Name": f"inner {t}", "Dimensions": [-1, 2], "Format/Datatype": t} for t in types),
    ]
    layers = [{"Name": "x", "Inputs": [], "Outputs": tensors, "Metadata": "METADATA"}]

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
            text = json.dumps({"Layers": layers}).replace("METADATA", metadata)
            inspector = SimpleNamespace(get_engine_information=lambda kind: text)
            return SimpleNamespace(
                create_engine_inspector=lambda: inspector,
                num_io_tensors=len(INPUTS),
                get_tensor_name=list(INPUTS).__getitem__,
            )

    module = SimpleNamespace(
        ILogger=Logger,
        Runtime=Runtime,
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        __version__="10.3.0",
    )
    return Flavour("tensorrt", module)  # type: ignore[arg-type]


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
def test_an_engine_of_that_type_passes(precision, types):
    check_plan(flavour(*types), memoryview(b"plan"), precision)


@pytest.mark.parametrize(
    ("precision", "types", "shown"),
    [
        ("fp16", ("Float", "Float", "Int32"), "Float, Int32"),
        ("int8", ("Half",), "Half"),
        ("int8", ("Row major linear UInt8 format", "Float"), "Float, Row major linear UInt8"),
    ],
)
def test_an_engine_that_fell_back_is_refused(precision, types, shown):
    with pytest.raises(EngineError, match=f"is not {precision}: its inspector shows {shown}"):
        check_plan(flavour(*types), memoryview(b"plan"), precision)


@pytest.mark.parametrize("types", [(), (DYNAMIC,), ("Float", DYNAMIC)])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_inspector_that_does_not_show_the_types_refuses_nothing(precision, types):
    """Engines for several batch sizes show few of them; the network was checked before."""
    said = check_plan(flavour(*types), memoryview(b"plan"), precision)
    assert "proven from the network only" in said


@pytest.mark.parametrize("metadata", ['a "quoted" name', "two\nlines", "{ unbalanced"])
def test_a_document_that_is_no_json_is_read(metadata):
    said = check_plan(flavour("Half", metadata=metadata), memoryview(b"plan"), "fp16")
    assert "of the types Half." in said
    with pytest.raises(EngineError, match="shows Float"):
        check_plan(flavour("Float", metadata=metadata), memoryview(b"plan"), "fp16")


def test_an_engine_that_does_not_open_says_why():
    with pytest.raises(EngineError, match="cannot open the engine it has built:\n  wrong GPU"):
        check_plan(flavour("Half", opens=False), memoryview(b"plan"), "fp16")
