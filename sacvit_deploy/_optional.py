"""Libraries that not every installation has, asked for at the moment of use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sacvit_deploy.errors import MissingDependencyError

if TYPE_CHECKING:
    from types import ModuleType

_EXTRA_OF = {
    "torch": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnx_graphsurgeon": "export",
    "safetensors": "export",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
}


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional library, or say which extra brings it.

    Args:
        module: Its import name, for example `"torch"`.
        purpose: What it is needed for, as the subject of a sentence: `"Exporting a model"`.

    Raises:
        MissingDependencyError: The library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        extra = _EXTRA_OF[error.name]
        raise MissingDependencyError(
            f"{purpose} needs {error.name}, which is not installed.",
            f"Install it with: pip install 'sacvit-deploy[{extra}]'",
        ) from error
