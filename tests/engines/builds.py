"""Machines and requests of the tests that build engines."""

from __future__ import annotations

from typing import Any

from sacvit_deploy.engines.engine_request import EngineRequest
from sacvit_deploy.engines.machine import Gpu, Machine
from sacvit_deploy.spec import EngineBackend, Precision

NO_GPU = Machine("linux-x86_64", None, ())
ORIN = Machine("linux-aarch64", "12.6", (Gpu("Orin", "8.7", 8 << 30, 8),))
ADA = Machine("linux-x86_64", "13.0", (Gpu("RTX 4090", "8.9", 24 << 30),))


def quiet(*_: object) -> None:
    """Report nothing."""


def request(
    precision: Precision = "fp32", backend: EngineBackend = "tensorrt-rtx", **options: Any
) -> EngineRequest:
    return EngineRequest(precision, backend, **options)
