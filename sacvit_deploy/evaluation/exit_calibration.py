"""The exit threshold for a goal, found on labelled pictures and kept in the bundle."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from sacvit_deploy.bundle import check_unchanged, locked, update_manifest
from sacvit_deploy.errors import BundleError, ConfigError
from sacvit_deploy.evaluation.answers import collect_answers
from sacvit_deploy.evaluation.exit_threshold import ThresholdSearch, check_enough, find_threshold
from sacvit_deploy.runtime.pipeline import load
from sacvit_deploy.samples import read_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sacvit_deploy.evaluation.exit_threshold import Calibration
    from sacvit_deploy.manifest import ExitCalibration, Manifest
    from sacvit_deploy.runtime.pipeline import Pipeline
    from sacvit_deploy.spec import Backend, Precision


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate, and how.

    Attributes:
        search: The goal, and how to get there.
        precision: Which graphs; None takes what `load` would.
        backend: As in `load`.
        class_names: What the data's classes are called, where they are ids.
        write: Keep the result in the bundle.
    """

    search: ThresholdSearch = field(default_factory=ThresholdSearch)
    precision: Precision | None = None
    backend: str = "auto"
    class_names: Mapping[str, str] | None = None
    write: bool = True


@dataclass(frozen=True)
class BundleCalibration:
    """A calibration and the graphs it is for.

    Attributes:
        calibration: What was found.
        precision: Of the graphs.
        runtime: That computed them.
        written: Whether the bundle keeps it.
    """

    calibration: Calibration
    precision: Precision
    runtime: Backend
    written: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = self.calibration.to_dict()
        curve = values.pop("curve")
        names = ("precision", "runtime", "written")
        return {**values, **{name: getattr(self, name) for name in names}, "curve": curve}


def calibrate_bundle(
    path: Path,
    data: Path,
    request: CalibrationRequest,
    report: Callable[[float, str], None] = lambda share, what: None,
    on_open: Callable[[Pipeline], None] = lambda pipeline: None,
) -> BundleCalibration:
    """Measure a bundle on data, choose the threshold, and keep it in the bundle.

    Args:
        path: The bundle's folder.
        data: Labelled pictures that were not trained on.
        request: The goal and what to open.
        report: Called after each picture with the share of the work done and what is done.
        on_open: Called once with what will be measured, before it is.

    Raises:
        GoalError: No threshold meets the goal; the bundle is as it was.
        ConfigError: The network has one stage.
        DataError: The data cannot be read, its classes are others, or there are too few pictures.
        BundleError: The bundle cannot be read or written, or was changed meanwhile.
        EngineError: The runtime cannot run it.
    """
    pipeline = load(path, backend=request.backend, precision=request.precision)
    _check_can_be_calibrated(path, pipeline.manifest, write=request.write)
    samples = read_samples(data)
    check_enough(len(samples.samples))
    on_open(pipeline)
    answers = collect_answers(pipeline, samples, request.class_names, report=report)
    found = find_threshold(answers, pipeline.manifest.config, request.search)
    precision, runtime = pipeline.precision, cast("Backend", pipeline.backend)
    if request.write:
        _write(path, pipeline.manifest, found.record(precision, runtime))
    return BundleCalibration(found, precision, runtime, request.write)


def _check_can_be_calibrated(path: Path, manifest: Manifest, *, write: bool) -> None:
    if manifest.config.two_stage is None:
        raise ConfigError(
            f"Bundle {path} has one stage, so there is no exit to calibrate.",
            "Give a bundle of a sac_ or cf_ network.",
        )
    if write and not os.access(path, os.W_OK):
        raise BundleError(
            f"Bundle {path} cannot be written to, so the threshold could not be kept.",
            "Copy the folder to where it can, or pass --dry-run.",
        )


def _write(path: Path, measured: Manifest, record: ExitCalibration) -> None:
    """Add the record to the bundle as it is now, if what was measured is still there."""
    with locked(path) as bundle:
        check_unchanged(bundle, measured.files, "measured", "Calibrate again.")
        update_manifest(bundle, bundle.manifest.with_calibration(record))
