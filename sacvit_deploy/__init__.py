"""Export and deploy input-adaptive Vision Transformers.

    pipeline = sacvit_deploy.load("bundle/", eta=0.6)
    result = pipeline("cat.jpg")

The public names are loaded at first use: `import sacvit_deploy` alone imports neither numpy nor an
inference runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacvit_deploy.bundle import Bundle, demo_bundle
    from sacvit_deploy.class_labels import labels
    from sacvit_deploy.errors import SacvitDeployError
    from sacvit_deploy.exporters.api import export
    from sacvit_deploy.runtime.control.budget import BudgetWarning
    from sacvit_deploy.runtime.control.drift import DriftWarning
    from sacvit_deploy.runtime.load import load
    from sacvit_deploy.runtime.pipeline import Pipeline
    from sacvit_deploy.runtime.result import Result
    from sacvit_deploy.visualize.token_map import token_map


__version__ = "0.1.0"

__all__ = [
    "BudgetWarning",
    "Bundle",
    "DriftWarning",
    "Pipeline",
    "Result",
    "SacvitDeployError",
    "__version__",
    "demo_bundle",
    "export",
    "labels",
    "load",
    "token_map",
]

_HOME = {
    "BudgetWarning": "runtime.control.budget",
    "Bundle": "bundle",
    "DriftWarning": "runtime.control.drift",
    "Pipeline": "runtime.pipeline",
    "Result": "runtime.result",
    "SacvitDeployError": "errors",
    "demo_bundle": "bundle",
    "export": "exporters.api",
    "labels": "class_labels",
    "load": "runtime.load",
    "token_map": "visualize.token_map",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "export":
        importlib.import_module(f"{__name__}.libraries").require_export("Exporting a model")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
