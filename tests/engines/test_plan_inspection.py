"""Only a GPU opens an engine; here the library is a stand-in with the names of the real one."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from sacvit_deploy.engines.plan_inspection import check_plan
from sacvit_deploy.engines.tensorrt_flavour import Flavour
from sacvit_deploy.errors import EngineError


def flavour(*types: str, opens: bool = True) -> Flavour:
    layers = [{"Name": "x", "Inputs": [], "Outputs": [{"Format/Datatype": t}]} for t in types]

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
            inspector = SimpleNamespace(
                get_engine_information=lambda kind: json.dumps({"Layers": layers, "Kind": kind})
            )
            return SimpleNamespace(create_engine_inspector=lambda: inspector)

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
        ("fp16", (), "no types"),
    ],
)
def test_an_engine_that_fell_back_is_refused(precision, types, shown):
    with pytest.raises(EngineError, match=f"is not {precision}: its inspector shows {shown}"):
        check_plan(flavour(*types), memoryview(b"plan"), precision)


def test_an_engine_that_does_not_open_says_why():
    with pytest.raises(EngineError, match="cannot open the engine it has built:\n  wrong GPU"):
        check_plan(flavour("Half", opens=False), memoryview(b"plan"), "fp16")
