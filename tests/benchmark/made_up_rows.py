"""Rows whose times are chosen, not measured."""

from __future__ import annotations

from typing import Any

from sacvit_deploy.benchmark.benchmark import Benchmark
from sacvit_deploy.benchmark.memory import FreshRun
from sacvit_deploy.benchmark.rows import Measured, Row
from sacvit_deploy.benchmark.timing import CallTime, summarize
from sacvit_deploy.bundle import Bundle
from sacvit_deploy.manifest import Manifest
from sacvit_deploy.spec import Precision

FRESH = FreshRun(500.0, 240.0, 260.0)


def two_stage_row(
    *,
    batch: int = 8,
    early: float = 8.0,
    refine: float = 8.0,
    dense: float | None = 40.0,
    precision: Precision = "fp32",
    **fields: Any,
) -> Row:
    """A quarter is refined, and nothing is left beside the sessions."""
    count = batch // 4
    call = CallTime(early + refine, {"early_exit": early, "refine": refine}, count)
    limit = CallTime((early + refine) / 2, {"early_exit": early / 2, "refine": refine / 2}, count)
    own = Measured(summarize([[call]], batch), summarize([[limit]], batch), FRESH)
    baseline = None
    if dense is not None:
        times = CallTime(dense, {"single": dense}), CallTime(dense / 4, {"single": dense / 4})
        whole, products = (summarize([[each]], batch) for each in times)
        baseline = Measured(whole, products, FRESH)
    return Row(
        **{
            "backend": "onnxruntime",
            "precision": precision,
            "threads": 1,
            "provider": "CPUExecutionProvider",
            "batch": batch,
            "has_two_stages": True,
            "own": own,
            "dense": baseline,
            "kernels": {"early_exit": {"MatMul": 3.0, "Softmax": 1.0}},
            "product_share": {"early_exit": 0.75},
            **fields,
        }
    )


def benchmark_of(rows: tuple[Row, ...], manifest: Manifest, folder: Any) -> Benchmark:
    """A benchmark of a bundle that is not on disk."""
    return Benchmark(Bundle(folder, manifest), None, "a CPU", "wall", 10.0, rows)
