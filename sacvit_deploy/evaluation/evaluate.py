"""Other evaluations, read back from the JSON they were written to, to stand beside a new one."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.errors import DataError
from sacvit_deploy.evaluation.answers import collect_answers, describe_setting
from sacvit_deploy.evaluation.class_names import read_class_names
from sacvit_deploy.evaluation.exit_sweep import (
    Exit,
    Latency,
    one_stage_point,
    operating_point,
    sweep_exits,
)
from sacvit_deploy.evaluation.statistics import class_rows, confusions, reliability
from sacvit_deploy.families.config import graph_macs
from sacvit_deploy.families.vit import dense_macs
from sacvit_deploy.runtime.algorithm import confidence, exits
from sacvit_deploy.runtime.pipeline import load
from sacvit_deploy.samples import read_samples
from sacvit_deploy.spec import check_eta

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sacvit_deploy.evaluation.answers import OnCorrupt, Setting, Skipped, StageAnswers
    from sacvit_deploy.evaluation.exit_sweep import OperatingPoint
    from sacvit_deploy.evaluation.statistics import ClassRow, Confusion, Reliability
    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.runtime.pipeline import Pipeline
    from sacvit_deploy.spec import Precision


@dataclass(frozen=True)
class Compared:
    """One row of another evaluation.

    Attributes:
        name: Of its bundle, with precision and threshold.
        top1: Share of right answers, in [0, 1].
        macs_mean_g: Mean cost of a picture, in 1e9 multiply-accumulates.
        latency_ms_mean: Mean latency of a picture at batch 1, in milliseconds.
        data_sha256: Names the pictures it was made on.

    Raises:
        ValueError: A number is out of range.
    """

    name: str
    top1: float
    macs_mean_g: float
    latency_ms_mean: float
    data_sha256: str

    def __post_init__(self) -> None:
        # Written so that NaN fails too; a chart has no place for it.
        costs = (self.macs_mean_g, self.latency_ms_mean)
        if not (0 <= self.top1 <= 1 and all(0 <= cost < math.inf for cost in costs)):
            raise ValueError(f"{self} is out of range")


def read_compared(file: Path) -> tuple[Compared, ...]:
    """Read what `sacvit-deploy evaluate --json` wrote.

    Raises:
        DataError: The file cannot be read, or was not written by it.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        rows = document.get("rows", [document])
        return tuple(_compared(document, row) for row in rows)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{file} is not an evaluation: {type(error).__name__}: {error}.",
            f"Write it with: sacvit-deploy evaluate BUNDLE DATA --json > {file}",
        ) from error


def _compared(document: Mapping[str, Any], row: Mapping[str, Any]) -> Compared:
    eta = "" if row["eta"] is None else f", eta {row['eta']:.4g}"
    return Compared(
        name=f"{document['bundle']} {document['precision']}{eta}",
        top1=float(row["top1"]),
        macs_mean_g=float(row["macs_mean_g"]),
        latency_ms_mean=float(row["latency_ms_mean"]),
        data_sha256=str(document["data_sha256"]),
    )


SWEEP = tuple(step / 100 for step in range(101))
"""The thresholds of a curve."""

_GIGA = 1e9


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate.

    Attributes:
        bundle: Folder of the bundle.
        data: Labelled pictures, anything `read_samples` takes.
        etas: Exit thresholds in [0, 1]; empty takes the one the bundle would run with and, where
            that was calibrated for a precision other than FP32, that of FP32 beside it.
        class_names: File that says what the data's classes are called, where they are ids.
        backend: As in `sacvit_deploy.load`.
        precision: As in `sacvit_deploy.load`.
        on_corrupt: `skip` a picture that cannot be read, or `stop`.

    Raises:
        ConfigError: A threshold is out of range.
    """

    bundle: Path
    data: Path
    etas: tuple[float, ...] = ()
    class_names: Path | None = None
    backend: str = "auto"
    precision: Precision | None = None
    on_corrupt: OnCorrupt = "skip"

    def __post_init__(self) -> None:
        for eta in self.etas:
            check_eta(eta)


@dataclass(frozen=True)
class Evaluation:
    """What a bundle is worth on some data.

    Attributes:
        setting: What was measured, and with what.
        images: Pictures that were read.
        skipped: Pictures that could not be read.
        data_sha256: Names the data; see `StageAnswers`.
        rows: One for each threshold that was asked for; classes, confusions and reliability are
            those of the first.
        curve: At 101 thresholds from 0 to 1; one point for a network of one stage.
        macs_g: Cost of each graph, and of the `dense` network of the same body, in 1e9
            multiply-accumulates.
        early_path: Latency of a picture that leaves early, or of the only stage.
        late_path: Latency of one that does not; None for one stage.
        top1_early_exit_only: Share of right answers of the first stage; None for one stage.
        top1_refine_only: Share of right answers of the second stage; None for one stage.
        reliability: Of the confidence that decides about the exit, or of the only stage.
        classes: Those that have pictures.
        confusions: What was taken for what.
        labels: Name of each class.
    """

    setting: Setting
    images: int
    skipped: tuple[Skipped, ...]
    data_sha256: str
    rows: tuple[OperatingPoint, ...]
    curve: tuple[OperatingPoint, ...]
    macs_g: dict[str, float]
    early_path: Latency
    late_path: Latency | None
    top1_early_exit_only: float | None
    top1_refine_only: float | None
    reliability: Reliability
    classes: tuple[ClassRow, ...]
    confusions: tuple[Confusion, ...]
    labels: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, by the contract of `evaluate`.

        One threshold lies at the top; of several each is one of `rows`, and where they were not
        asked for, the first is at the top as well.
        """
        rows = [self._row(point) for point in self.rows]
        several = len(rows) > 1
        asked = self.rows[0].exit is not None and self.rows[0].exit.source == "given"
        document: dict[str, Any] = {} if several and asked else dict(rows[0])
        if several:
            document["rows"] = rows
        return {
            **document,
            "images": self.images,
            "skipped": [vars(skipped) for skipped in self.skipped],
            "macs_g": self.macs_g,
            "early_path": self.early_path.to_dict(),
            "late_path": self.late_path and self.late_path.to_dict(),
            **self.reliability.to_dict(),
            "classes": [row.to_dict() for row in self.classes],
            "confusions": [list(vars(entry).values()) for entry in self.confusions],
            "data_sha256": self.data_sha256,
            **self.setting.to_dict(),
        }

    def _row(self, point: OperatingPoint) -> dict[str, Any]:
        return {
            **point.to_dict(),
            "top1_early_exit_only": self.top1_early_exit_only,
            "top1_refine_only": self.top1_refine_only,
            "images": self.images,
        }


def run_evaluation(
    request: EvaluationRequest,
    report: Callable[[float, str], None] = lambda share, what: None,
    on_open: Callable[[Pipeline], None] = lambda pipeline: None,
) -> Evaluation:
    """Open a bundle, and see what it is worth on labelled pictures.

    Args:
        request: What to evaluate.
        report: Called with the share of the work done, in (0, 1], and with it in words.
        on_open: Called once with what will be measured, before it is.

    Raises:
        DataError: The data cannot be read, or its classes are not those of the bundle.
        ImageError: A picture cannot be read, and the request is to stop there.
        BundleError: The bundle cannot be read or has no graphs of that precision.
        EngineError: The runtime is not available or failed.
        MissingDependencyError: The runtime is not installed.
    """
    names = read_class_names(request.class_names) if request.class_names else None
    samples = read_samples(request.data)
    pipeline = load(request.bundle, backend=request.backend, precision=request.precision)
    on_open(pipeline)
    answers = collect_answers(
        pipeline, samples, names, report=report, on_corrupt=request.on_corrupt
    )
    setting = describe_setting(pipeline, request.bundle, request.data)
    return evaluate_answers(pipeline, answers, setting, request.etas)


def evaluate_answers(
    pipeline: Pipeline, answers: StageAnswers, setting: Setting, etas: Sequence[float] = ()
) -> Evaluation:
    """Evaluate answers that are there already.

    Args:
        pipeline: That gave them.
        answers: On at least one picture.
        setting: To be named in the result.
        etas: As in `EvaluationRequest`.
    """
    config, labels = pipeline.manifest.config, pipeline.manifest.labels
    asked = _exits_asked(pipeline, etas)
    rows, curve = _points(answers, config, asked)
    sure = confidence(answers.decisions.early_logits, asked[0].temperature)
    right, predicted = _pictures(answers, config, sure, asked[0].eta)
    one_stage = config.two_stage is None
    return Evaluation(
        setting=setting,
        images=len(answers.names),
        skipped=answers.skipped,
        data_sha256=answers.data_sha256,
        rows=rows,
        curve=curve,
        macs_g=_macs_g(pipeline),
        early_path=Latency.of(answers.early_ms),
        late_path=None if one_stage else Latency.of(answers.early_ms + answers.refine_ms),
        top1_early_exit_only=_mean(right.get("top1_early_exit_only")),
        top1_refine_only=_mean(right.get("top1_refine_only")),
        reliability=reliability(sure, right["top1" if one_stage else "top1_early_exit_only"]),
        classes=class_rows(answers.class_index, labels, right),
        confusions=confusions(answers.class_index, predicted),
        labels=labels,
    )


def _exits_asked(pipeline: Pipeline, etas: Sequence[float]) -> list[Exit]:
    """What was asked for, or what the bundle would do, in this precision and in FP32."""
    temperature = pipeline.temperature
    if pipeline.manifest.config.two_stage is None:
        return [Exit(pipeline.eta)]
    if etas:
        return [Exit(eta, temperature) for eta in etas]
    manifest = pipeline.manifest
    if manifest.exit_calibration(pipeline.precision, pipeline.backend) is None:
        return [Exit(pipeline.eta, temperature, "bundle")]
    own = Exit(pipeline.eta, temperature, "calibrated")
    if pipeline.precision == "fp32":
        return [own]
    return [own, Exit(*manifest.usual_exit("fp32", pipeline.backend), "fp32")]


def _points(
    answers: StageAnswers, config: ModelConfig, asked: Sequence[Exit]
) -> tuple[tuple[OperatingPoint, ...], tuple[OperatingPoint, ...]]:
    """At the thresholds that were asked for, and at those of a curve."""
    if config.two_stage is None:
        only = (one_stage_point(answers, config),)
        return only, only
    temperature = asked[0].temperature
    sweeps = {t: sweep_exits(answers, config, t) for t in {each.temperature for each in asked}}
    rows = tuple(operating_point(sweeps[each.temperature], each) for each in asked)
    curve = (operating_point(sweeps[temperature], Exit(e, temperature, "sweep")) for e in SWEEP)
    return rows, tuple(curve)


def _pictures(
    answers: StageAnswers, config: ModelConfig, sure: NDArray[np.float64], eta: float
) -> tuple[dict[str, NDArray[np.bool_]], NDArray[np.int64]]:
    """Which pictures count for each share of a `ClassRow`, and what each is taken for."""
    true = answers.class_index
    early, late = (
        logits.argmax(1)
        for logits in (answers.decisions.early_logits, answers.decisions.refined_logits)
    )
    if config.two_stage is None:
        return {"top1": early == true}, early
    leaving = exits(sure, eta, config.stages.exit_comparison)
    predicted = np.where(leaving, early, late)
    shares = {
        "top1": predicted == true,
        "early_exit_fraction": leaving,
        "top1_early_exit_only": early == true,
        "top1_refine_only": late == true,
    }
    return shares, predicted


def _macs_g(pipeline: Pipeline) -> dict[str, float]:
    config = pipeline.manifest.config
    macs = {str(role): count for role, count in graph_macs(config).items()}
    macs["dense"] = dense_macs(config)
    return {role: count / _GIGA for role, count in macs.items()}


def _mean(which: NDArray[np.bool_] | None) -> float | None:
    return None if which is None else float(np.mean(which))
