"""Optional libraries, imported at use, and versions of libraries."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys
from types import ModuleType

import sacvit_deploy
from sacvit_deploy.errors import MissingDependencyError

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
    "openvino": "openvino",
    "cv2": "video",
    "pyarrow": "parquet",
    "polygraphy": "tensorrt",
    "pytriton": "triton",
    "tensorboard": "train",
    "tomli": "train",
    "yaml": "train",
}


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional library, or say which extra brings it.

    Args:
        module: Its import name, for example `"torch"`.
        purpose: What needs it, as the subject of a sentence: `"Exporting a model"`.

    Raises:
        MissingDependencyError: The library is not installed.
        ValueError: No extra brings it, which is a mistake in this package.
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


def require_export(purpose: str) -> None:
    """Import what the extra `export` brings; see `require`.

    Args:
        purpose: What needs it, as the subject of a sentence.
    """
    for module in (module for module, extra in _EXTRA_OF.items() if extra == "export"):
        require(module, purpose)


def version(name: str) -> str | None:
    """Version of a library, from its module if that is loaded, else from its metadata.

    Nothing is imported: torch takes seconds.

    Args:
        name: Its name on PyPI, for example `"onnx-graphsurgeon"`.

    Returns:
        None if it is not installed.
    """
    loaded = getattr(sys.modules.get(name.replace("-", "_")), "__version__", None)
    if loaded is not None:
        return str(loaded)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(*names: str) -> dict[str, str]:
    """Versions of several libraries by name, without those that are not installed."""
    found = ((name, version(name)) for name in names)
    return {name: number for name, number in found if number is not None}


def own_versions() -> dict[str, str]:
    """Versions of this package and of Python."""
    return {"sacvit-deploy": sacvit_deploy.__version__, "python": platform.python_version()}
