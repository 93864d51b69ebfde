"""Proof of precision once more, from the built engine, where there is a GPU that can open it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from sacvit_deploy.engines.build_monitor import BuildLog, logger
from sacvit_deploy.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sacvit_deploy.engines.tensorrt_flavour import Flavour
    from sacvit_deploy.manifest import Precision

# Releases write "Half", "Row major linear FP16 format", "Int8", "... INT8 ...".
_SPELLINGS = {"fp16": re.compile("half|fp16", re.I), "int8": re.compile("int8", re.I)}


def check_plan(flavour: Flavour, content: memoryview, precision: Precision) -> None:
    """Open an engine and look for tensors of the type that was asked for; FP32 needs no look.

    Raises:
        EngineError: It cannot be opened, or has no tensor of that type.
    """
    if precision == "fp32":
        return
    types = list(_tensor_types(_information(flavour, content)))
    if not any(_SPELLINGS[precision].search(text) for text in types):
        shown = ", ".join(sorted(set(types))) or "no types"
        raise EngineError(
            f"The engine is not {precision}: its inspector shows {shown}. Nothing was written.",
            f"Make the graph again: sacvit-deploy export --precision {precision}.",
        )


def _information(flavour: Flavour, content: memoryview) -> Any:
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
    inspector = engine.create_engine_inspector()
    return json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _tensor_types(node: Any) -> Iterator[str]:
    """Every "Format/Datatype" in the inspector's document, however deep."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "Format/Datatype":
                yield str(value)
            else:
                yield from _tensor_types(value)
    elif isinstance(node, list):
        for value in node:
            yield from _tensor_types(value)
