"""Libraries that not every installation has, asked for at the moment of use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sacvit_deploy.errors import MissingDependencyError

if TYPE_CHECKING:
    from types import ModuleType


# Import name to the extra in pyproject.toml that brings the library.
_EXTRA_OF = {
    "torch": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnx_graphsurgeon": "export",
    "safetensors": "export",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "cuda": "tensorrt",
    "matplotlib": "viz",
    "pytriton": "triton",
    "tensorboard": "train",
    "tomli": "train",
    "yaml": "train",
}


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional library, or say which extra brings it.

    Args:
        module: Its import name, for example `"torch"`.
        purpose: What it is needed for, as the subject of a sentence: `"Exporting a model"`.

    Raises:
        MissingDependencyError: The library is not installed.
        ValueError: No extra is known to bring it; a mistake in this package, not of its user.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name != top:
            raise
        if top not in _EXTRA_OF:
            raise ValueError(f"{top!r} is not in the table of {__name__}.") from error
        raise MissingDependencyError(
            f"{purpose} needs {top}, which is not installed.",
            f"Install it with: pip install 'sacvit-deploy[{_EXTRA_OF[top]}]'",
        ) from error
