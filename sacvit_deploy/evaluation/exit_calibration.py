"""Calibration of a bundle's exit threshold, on labelled pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sacvit_deploy.bundle_changes import check_unchanged, locked, update_manifest
from sacvit_deploy.errors import BundleError, ConfigError
from sacvit_deploy.evaluation.answers import collect_answers
from sacvit_deploy.evaluation.class_names import read_class_names
from sacvit_deploy.evaluation.exit_threshold import (
    Calibration,
    ThresholdSearch,
    check_enough,
    find_threshold,
)
from sacvit_deploy.manifest import Manifest
from sacvit_deploy.progress import OnProgress, silent
from sacvit_deploy.records import ExitCalibration
from sacvit_deploy.runtime.load import load_classifier
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.samples import read_samples
from sacvit_deploy.spec import Backend, Precision


@dataclass(frozen=True)
class CalibrationRequest:
    """A goal, and the graphs to calibrate for it.

    Attributes:
        search: The goal, and how to search for its threshold.
        precision: Precision of the graphs; None chooses as `load` does.
        backend: See `load`.
        class_names: File with the names of the data's classes, if the data has ids.
        write: Store the result in the bundle.
        batch_size: Pictures that are computed together; 1 if the goal is a latency.
        threads: CPU threads of one operator; None leaves it to the backend.

    Raises:
        ConfigError: The goal is a latency, and the batch size is not 1.
    """

    search: ThresholdSearch = field(default_factory=ThresholdSearch)
    precision: Precision | None = None
    backend: str = "auto"
    class_names: Path | None = None
    write: bool = True
    batch_size: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.search.goal.kind == "target_latency_ms" and self.batch_size != 1:
            raise ConfigError(
                f"A latency was limited with a batch size of {self.batch_size}. A picture of a "
                "batch waits for the others, and only its share of their time is known.",
                "Leave out the batch size, or give another goal.",
            )


@dataclass(frozen=True)
class BundleCalibration:
    """A calibration, and the graphs it belongs to.

    Attributes:
        calibration: The threshold and its effect.
        precision: Precision of the graphs.
        backend: Backend that computed.
        written: Whether the bundle stores it.
        batch_size: Pictures that were computed together.
    """

    calibration: Calibration
    precision: Precision
    backend: Backend
    written: bool
    batch_size: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `calibrate`."""
        document = self.calibration.to_dict()
        curve = document.pop("curve")
        graphs = {
            "precision": self.precision,
            "runtime": self.backend,
            "batch_size": self.batch_size,
            "written": self.written,
        }
        return {**document, **graphs, "curve": curve}


def calibrate_bundle(
    path: Path,
    data: Path,
    request: CalibrationRequest,
    on_progress: OnProgress = silent,
    on_open: Callable[[Pipeline], None] = lambda pipeline: None,
) -> BundleCalibration:
    """Measure a bundle on data, choose the threshold, and store it in the bundle.

    Args:
        path: Folder of the bundle.
        data: Labelled pictures that the network was not trained on.
        request: The goal and the graphs.
        on_progress: Called with the share of the work done, in (0, 1], and a short text.
        on_open: Called once with the open pipeline, before the first picture.

    Raises:
        GoalError: No threshold meets the goal; the bundle is unchanged.
        ConfigError: The network has one stage.
        DataError: The data cannot be read, its classes are others, or there are too few pictures.
        BundleError: The bundle cannot be read or written, or was changed meanwhile.
        EngineError: The backend cannot run it.
    """
    names = read_class_names(request.class_names) if request.class_names else None
    with load_classifier(
        path,
        backend=request.backend,
        precision=request.precision,
        threads=request.threads,
        decode="exact",
    ) as pipeline:
        _check_can_be_calibrated(path, pipeline.manifest, write=request.write)
        samples = read_samples(data)
        check_enough(len(samples.samples))
        on_open(pipeline)
        answers = collect_answers(
            pipeline, samples, names, on_progress=on_progress, batch_size=request.batch_size
        )
    found = find_threshold(answers, pipeline.manifest.config, request.search)
    precision, backend = pipeline.precision, cast("Backend", pipeline.backend)
    if request.write:
        _write(path, pipeline.manifest, found.record(precision, backend, request.batch_size))
    return BundleCalibration(found, precision, backend, request.write, request.batch_size)


def _check_can_be_calibrated(path: Path, manifest: Manifest, *, write: bool) -> None:
    if manifest.config.two_stage is None:
        raise ConfigError(
            f"Bundle {path} has one stage, so there is no exit to calibrate.",
            "Give a bundle of a two-stage network.",
        )
    if write and not os.access(path, os.W_OK):
        raise BundleError(
            f"Bundle {path} cannot be written, so the threshold could not be stored.",
            "Copy the folder to a place where it can, or pass --dry-run.",
        )


def _write(path: Path, measured: Manifest, record: ExitCalibration) -> None:
    """Add the record to the bundle as it is now, if the measured files are unchanged."""
    with locked(path) as bundle:
        check_unchanged(bundle, measured.files, "measured", "Calibrate again.")
        update_manifest(bundle, bundle.manifest.with_calibration(record))
