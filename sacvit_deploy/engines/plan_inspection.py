"""Proof of precision once more, from the built engine, where there is a GPU that can open it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sacvit_deploy.engines.build_monitor import BuildLog, logger
from sacvit_deploy.errors import EngineError

if TYPE_CHECKING:
    from sacvit_deploy.engines.tensorrt_flavour import Flavour
    from sacvit_deploy.manifest import Precision

# Releases write "Half", "Row major linear FP16 format", "Int8", "... INT8 ...".
_SPELLINGS = {"fp16": re.compile("half|fp16", re.I), "int8": re.compile("(?<!u)int8", re.I)}

# A tensor in the inspector's document. It is read as text, since quotes in names of layers can make
# the document invalid JSON (NVIDIA/TensorRT#2779); a tensor itself holds no braces.
_TENSOR = re.compile(r'\{[^{}]*"Format/Datatype"[^{}]*\}')
_NAME = re.compile(r'"Name":\s*"([^"]*)"')
_TYPE = re.compile(r'"Format/Datatype":\s*"([^"]*)"')
# "N/A due to dynamic shapes" stands instead of most types in engines that take several batch sizes.
_NOT_SHOWN = "N/A"


def check_plan(flavour: Flavour, content: memoryview, precision: Precision) -> str:
    """Open an engine and look for tensors of the type that was asked for; FP32 needs no look.

    Returns:
        What was found, for the log: the inspector may show no types, and then proves nothing.

    Raises:
        EngineError: It cannot be opened, or shows all of its types and none is that.
    """
    if precision == "fp32":
        return "FP32 engines are not inspected."
    types = _inner_types(flavour, content)
    shown = ", ".join(sorted(set(types)))
    if any(_SPELLINGS[precision].search(text) for text in types):
        return f"The inspector shows tensors of the types {shown}."
    if not types or any(text.startswith(_NOT_SHOWN) for text in types):
        return (
            f"The inspector does not show which types the tensors have ({shown or 'none'}); that "
            f"the engine is {precision} was proven from the network only."
        )
    raise EngineError(
        f"The engine is not {precision}: its inspector shows {shown}. Nothing was written.",
        f"Make the graph again: sacvit-deploy export --precision {precision}.",
    )


def _inner_types(flavour: Flavour, content: memoryview) -> list[str]:
    """How the inspector writes the type of every tensor that is no input or output.

    Those say nothing about what computes; some releases write INT64 as INT8 (NVIDIA/TensorRT#4048).
    """
    trt, log = flavour.module, BuildLog()
    runtime = trt.Runtime(logger(trt, log))
    runtime.engine_host_code_allowed = True  # version compatible engines carry some; it is our own
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise EngineError(
            f"{flavour.label} {flavour.version} cannot open the engine it has built:\n"
            + "\n".join(f"  {text}" for text in log.errors),
            "See what this machine has with: sacvit-deploy doctor",
        )
    outer = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    tensors = _TENSOR.findall(text)
    return [_first(_TYPE, tensor) for tensor in tensors if _first(_NAME, tensor) not in outer]


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""
