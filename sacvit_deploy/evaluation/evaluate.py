"""Accuracy, cost and latency of a bundle on labelled pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sacvit_deploy.decode import encode
from sacvit_deploy.evaluation.answers import (
    OnCorrupt,
    Setting,
    Skipped,
    StageAnswers,
    collect_answers,
    describe_setting,
)
from sacvit_deploy.evaluation.class_names import read_class_names
from sacvit_deploy.evaluation.exit_sweep import Exit, OperatingPoint, sweep_exits
from sacvit_deploy.evaluation.predictions import Predictions
from sacvit_deploy.evaluation.statistics import (
    ClassRow,
    Confusion,
    Reliability,
    class_rows,
    confusions,
    reliability,
)
from sacvit_deploy.families.config import dense_body_macs, graph_macs
from sacvit_deploy.progress import OnProgress, silent
from sacvit_deploy.runtime.algorithm import confidence
from sacvit_deploy.runtime.load import load_classifier
from sacvit_deploy.runtime.pipeline import Pipeline
from sacvit_deploy.samples import SampleSet, read_samples
from sacvit_deploy.spec import Decode, Precision, check_count, check_eta

CURVE_ETAS = tuple(step / 100 for step in range(101))
"""Thresholds of the curve."""

_GIGA = 1e9


@dataclass(frozen=True)
class EvaluationRequest:
    """A bundle, and the data to evaluate it on.

    Attributes:
        bundle: Folder of the bundle.
        data: Labelled pictures, in any form that `read_samples` reads.
        etas: Exit thresholds in [0, 1]. Without one, the bundle's own; if that was calibrated for
            a precision other than FP32, that of FP32 is evaluated too.
        class_names: File with the names of the data's classes, if the data has ids.
        backend: See `sacvit_deploy.load`.
        precision: See `sacvit_deploy.load`.
        on_corrupt: `skip` a picture that cannot be read, or `stop`.
        decode: See `sacvit_deploy.load`; `exact` is how training and calibration read.
        batch_size: Pictures that are computed together. Latencies are then shares of a batch.
        threads: See `sacvit_deploy.load`.
        limit: Use so many of the pictures, spread over all classes; None uses all.

    Raises:
        ConfigError: A threshold or the limit is out of range.
    """

    bundle: Path
    data: Path
    etas: tuple[float, ...] = ()
    class_names: Path | None = None
    backend: str = "auto"
    precision: Precision | None = None
    on_corrupt: OnCorrupt = "skip"
    decode: Decode = "exact"
    batch_size: int = 1
    threads: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for eta in self.etas:
            check_eta(eta)
        if self.limit is not None:
            check_count("limit", self.limit)


@dataclass(frozen=True)
class Evaluation:
    """Accuracy, cost and latency of a bundle on some data.

    Attributes:
        setting: Network, data, machine and libraries.
        images: Number of pictures that were read.
        skipped: Pictures that could not be read.
        data_sha256: Hash of the data; see `StageAnswers`.
        rows: One point for each threshold asked for. Classes, confusions, reliability and
            predictions are those of the first.
        curve: Points at 101 thresholds from 0 to 1; a single one for a network of one stage.
        macs_g: Cost of each graph, and of the `dense` network of the same body, in 10^9
            multiply-accumulates.
        kept_tokens_mean: Mean of the tokens that each gate kept; None for a network without gates.
        reliability: Calibration of the confidence that decides the exit, or of the only stage.
        classes: Classes that have pictures.
        confusions: Pairs of true and predicted class.
        labels: Name of each class of the network.
        predictions: Answer for each picture that was read.
    """

    setting: Setting
    images: int
    skipped: tuple[Skipped, ...]
    data_sha256: str
    rows: tuple[OperatingPoint, ...]
    curve: tuple[OperatingPoint, ...]
    macs_g: dict[str, float]
    reliability: Reliability
    classes: tuple[ClassRow, ...]
    confusions: tuple[Confusion, ...]
    labels: tuple[str, ...]
    predictions: Predictions = field(repr=False, compare=False)
    kept_tokens_mean: tuple[float, ...] | None = None

    @property
    def early_alone(self) -> OperatingPoint:
        """Point where every picture exits early; the only point of a network of one stage."""
        return self.curve[0]

    @property
    def refine_alone(self) -> OperatingPoint | None:
        """Point where every picture is refined; None for a network of one stage."""
        return self.curve[-1] if len(self.curve) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `evaluate`.

        A single threshold lies at the top. Several are the `rows`; if they were not asked for, the
        first is at the top too.
        """
        rows = [self._row(point) for point in self.rows]
        several = len(rows) > 1
        document: dict[str, Any] = {}
        if not several or self.rows[0].source != "given":
            document |= rows[0]
        if several:
            document["rows"] = rows
        document |= {
            "images": self.images,
            "skipped": self.skipped,
            "macs_g": self.macs_g,
            "kept_tokens_mean": self.kept_tokens_mean,
            "early_path": self.early_alone.latency_ms(),
            "late_path": self.refine_alone and self.refine_alone.latency_ms(),
            "ece": self.reliability.ece,
            "reliability": self.reliability.bins,
            "classes": self.classes,
            "confusions": [list(vars(entry).values()) for entry in self.confusions],
            "data_sha256": self.data_sha256,
            **vars(self.setting),
        }
        return dict(encode(document))

    def _row(self, point: OperatingPoint) -> dict[str, Any]:
        late = self.refine_alone
        return {
            **point.to_dict(),
            "top1_early_exit_only": late and self.early_alone.top1,
            "top1_refine_only": late and late.top1,
            "images": self.images,
        }


def run_evaluation(
    request: EvaluationRequest,
    on_progress: OnProgress = silent,
    on_open: Callable[[Pipeline], None] = lambda pipeline: None,
) -> Evaluation:
    """Open a bundle and evaluate it on labelled pictures.

    Args:
        request: The bundle and the data.
        on_progress: Called with the share of the work done, in (0, 1], and a short text.
        on_open: Called once with the open pipeline, before the first picture.

    Raises:
        DataError: The data cannot be read, or its classes are not those of the bundle.
        ImageError: A picture cannot be read, with `on_corrupt="stop"`.
        BundleError: The bundle cannot be read or has no graphs of that precision.
        EngineError: The backend is not available or failed.
        MissingDependencyError: The backend is not installed.
    """
    names = read_class_names(request.class_names) if request.class_names else None
    samples = _spread(read_samples(request.data), request.limit)
    with load_classifier(
        request.bundle,
        backend=request.backend,
        precision=request.precision,
        decode=request.decode,
        threads=request.threads,
    ) as pipeline:
        on_open(pipeline)
        answers = collect_answers(
            pipeline,
            samples,
            names,
            on_progress=on_progress,
            on_corrupt=request.on_corrupt,
            batch_size=request.batch_size,
        )
    setting = describe_setting(
        pipeline, request.bundle, request.data, request.batch_size, request.threads
    )
    return evaluate_answers(pipeline, answers, setting, request.etas)


def _spread(samples: SampleSet, limit: int | None) -> SampleSet:
    """Take pictures at equal distances, so that every class of a sorted set has its share."""
    count = len(samples.samples)
    if limit is None or limit >= count:
        return samples
    chosen = tuple(samples.samples[index * count // limit] for index in range(limit))
    return replace(samples, samples=chosen)


def evaluate_answers(
    pipeline: Pipeline, answers: StageAnswers, setting: Setting, etas: Sequence[float] = ()
) -> Evaluation:
    """Evaluate answers that were collected before.

    Args:
        pipeline: Pipeline that gave the answers.
        answers: Answers for at least one picture.
        setting: Named in the result.
        etas: See `EvaluationRequest`.
    """
    config, labels = pipeline.manifest.config, pipeline.manifest.labels
    asked = _exits_asked(pipeline, etas)
    sweeps = {t: sweep_exits(answers, config, t) for t in {each.temperature for each in asked}}
    rows = tuple(sweeps[each.temperature].operating_point(each) for each in asked)
    first, sweep = rows[0], sweeps[rows[0].temperature]
    index = sweep.index_of(first.eta)
    curve, shares = rows, {"top1": sweep.correct(index)}
    if config.two_stage:
        exits = (Exit(eta, first.temperature, "sweep") for eta in CURVE_ETAS)
        curve = tuple(map(sweep.operating_point, exits))
        shares["early_exit_fraction"] = sweep.exits_early(index)
        shares["top1_early_exit_only"] = sweep.early_correct
        shares["top1_refine_only"] = sweep.refined_correct
    logits = answers.decisions.early_logits
    confidences = confidence(logits, first.temperature)
    macs_g = {str(role): count / _GIGA for role, count in graph_macs(config).items()}
    return Evaluation(
        setting=setting,
        images=sweep.images,
        skipped=answers.skipped,
        data_sha256=answers.data_sha256,
        rows=rows,
        curve=curve,
        macs_g=macs_g | {"dense": dense_body_macs(config) / _GIGA},
        reliability=reliability(confidences, logits.argmax(1) == answers.class_index),
        classes=class_rows(sweep.true_class, labels, shares),
        confusions=confusions(sweep.true_class, sweep.predicted(index)),
        labels=labels,
        predictions=Predictions.at_exit(answers, config, labels, first.eta, first.temperature),
        kept_tokens_mean=_kept_mean(answers),
    )


def _kept_mean(answers: StageAnswers) -> tuple[float, ...] | None:
    kept = answers.decisions.kept
    return tuple(kept.mean(axis=0).tolist()) if kept.size else None


def _exits_asked(pipeline: Pipeline, etas: Sequence[float]) -> list[Exit]:
    """Return the thresholds asked for, else those the bundle would use here and in FP32."""
    manifest, temperature = pipeline.manifest, pipeline.temperature
    if manifest.config.two_stage is None:
        return [Exit(1.0, source=None)]
    if etas:
        return [Exit(eta, temperature) for eta in etas]
    if pipeline.calibration is None:
        return [Exit(pipeline.eta, temperature, "bundle")]
    own = Exit(pipeline.eta, temperature, "calibrated")
    if pipeline.precision == "fp32":
        return [own]
    return [own, Exit(*manifest.usual_exit("fp32", pipeline.backend), "fp32")]
