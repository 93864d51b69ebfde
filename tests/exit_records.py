"""Calibrations of the exit that nobody measured."""

from __future__ import annotations

import dataclasses
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from sacvit_deploy.records import CalibrationPoint, ExitCalibration
from tests.fakes import fake_manifest

if TYPE_CHECKING:
    from sacvit_deploy.manifest import Manifest
    from sacvit_deploy.spec import Backend, Precision


def exit_record(
    precision: Precision = "fp32", runtime: Backend = "onnxruntime", **fields: Any
) -> ExitCalibration:
    """A record that fits a two-stage bundle."""
    values: dict[str, Any] = {
        "eta": 0.625,
        "temperature": 1.0,
        "goal": "max_accuracy_drop=0.005",
        "images": 1000,
        "data_sha256": "ab" * 32,
        "top1": 0.8,
        "top1_interval": (0.77, 0.82),
        "macs_mean_g": 1.5,
        "early_exit_fraction": 0.75,
        "confidence_histogram": (0.0,) * 16 + (0.25,) * 4,
        "curve": (
            CalibrationPoint(0.0, 0.7, 1.0, 1.0, 2.0, 3.0),
            CalibrationPoint(0.625, 0.8, 0.75, 1.5, 2.5, 5.0),
            CalibrationPoint(1.0, 0.81, 0.0, 3.0, 5.0, 6.0),
        ),
    }
    return ExitCalibration(precision, runtime, **(values | fields))


RECORDS = (
    exit_record(),
    exit_record("fp16", eta=0.5, temperature=1.25),
    exit_record("fp16", "tensorrt"),
    exit_record("fp16", "tensorrt-rtx"),
)
"""They fit `in_two_precisions`."""


def in_two_precisions() -> Manifest:
    """The description of a two-stage bundle with FP32 and FP16 graphs."""
    manifest = fake_manifest()
    half = (
        dataclasses.replace(
            graph, precision="fp16", file=str(PurePosixPath(graph.file).with_suffix(".fp16.onnx"))
        )
        for graph in manifest.graphs
    )
    return dataclasses.replace(manifest, graphs=(*manifest.graphs, *half))
