"""What to use for a goal: precision, batch size, exit threshold, share of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sacvit_deploy.benchmark.benchmark import Benchmark
from sacvit_deploy.benchmark.rows import Row
from sacvit_deploy.decode import check_field
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.config import ModelConfig, graph_macs
from sacvit_deploy.manifest import Manifest
from sacvit_deploy.spec import as_number

_ALPHAS = tuple(step / 20 for step in range(19, 0, -1))


@dataclass(frozen=True)
class Goal:
    """What is wanted; at most one of both.

    Attributes:
        latency_ms: Longest mean time of a batch, in milliseconds, above 0.
        images_per_s: Least pictures per second, above 0.

    Raises:
        ConfigError: Both are given, or one is out of range.
    """

    latency_ms: float | None = None
    images_per_s: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in given.items():
            check_field(0 < as_number(value) < 1e9, name, value, "a number above 0")
        if len(given) > 1:
            raise ConfigError("Two goals were given.", "Give one of them.")

    @property
    def is_given(self) -> bool:
        """Whether there is a goal."""
        return self.latency_ms is not None or self.images_per_s is not None

    def is_met(self, batch_ms: float, batch: int) -> bool:
        """Whether a mean time of a batch meets the goal; any does without one."""
        if self.latency_ms is not None:
            return batch_ms <= self.latency_ms
        return self.images_per_s is None or batch * 1e3 / batch_ms >= self.images_per_s

    def __str__(self) -> str:
        if self.latency_ms is not None:
            return f"at most {self.latency_ms:g} ms for a batch"
        return f"at least {self.images_per_s:g} images/s" if self.is_given else "none"


@dataclass(frozen=True)
class Setting:
    """One way to run the bundle, and what it gives.

    Attributes:
        row: Measurements of backend, precision and batch size.
        refined: Expected share of refined pictures, in [0, 1].
        eta: Exit threshold; None without a calibration.
        top1: Accuracy there; None without a calibration.
    """

    row: Row
    refined: float
    eta: float | None = None
    top1: float | None = None

    @property
    def batch_ms(self) -> float:
        """Expected mean time of a batch."""
        return self.row.ms_at(self.refined)

    def to_dict(self) -> dict[str, Any]:
        """Return it for the JSON document."""
        return {
            "backend": self.row.backend,
            "precision": self.row.precision,
            "threads": self.row.threads,
            "batch": self.row.batch,
            "eta": self.eta,
            "top1": self.top1,
            "refine_fraction": round(self.refined, 4),
            "latency_ms": round(self.batch_ms, 4),
            "images_per_s": round(self.row.batch * 1e3 / self.batch_ms, 4),
        }


@dataclass(frozen=True)
class Advice:
    """What to use.

    Attributes:
        goal: What was wanted.
        setting: The most accurate one that meets the goal, of these the fastest; None if none does.
        nearest: The fastest setting where none meets the goal.
        alpha: Share of tokens that the bundle refines; None for one stage.
        other_alpha: Largest share that would meet the goal at the calibrated threshold, estimated
            from multiply-accumulates, if the bundle's own does not; None if there is no such share.
        rows: Rows of the benchmark, each with its break-even share.
        is_calibrated: Whether accuracy was measured for at least one setting.
    """

    goal: Goal
    setting: Setting | None
    nearest: Setting | None
    alpha: float | None
    other_alpha: float | None
    rows: Sequence[Row]
    is_calibrated: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it for the JSON document."""
        return {
            "goal": str(self.goal),
            "met": self.setting is not None,
            "setting": self.setting and self.setting.to_dict(),
            "nearest": self.nearest and self.nearest.to_dict(),
            "alpha": self.alpha,
            "other_alpha": self.other_alpha,
            "is_calibrated": self.is_calibrated,
            "break_even": [
                {
                    "backend": row.backend,
                    "precision": row.precision,
                    "threads": row.threads,
                    "batch": row.batch,
                    "share": row.break_even_share and round(row.break_even_share, 4),
                }
                for row in self.rows
                if row.has_two_stages
            ],
        }


def advise(found: Benchmark, goal: Goal) -> Advice:
    """Choose among the rows of a benchmark, at every exit threshold of the calibration.

    Without a calibration for a row's precision and backend its accuracy is not known. Such a row
    stands with the share of refined pictures that was measured, behind all others.

    Args:
        found: Measurements.
        goal: What is wanted.
    """
    manifest = found.bundle.manifest
    settings = [each for row in found.rows for each in _settings(row, manifest)]
    meeting = [each for each in settings if goal.is_met(each.batch_ms, each.row.batch)]
    best = max(meeting, key=_worth, default=None)
    nearest = None
    if best is None and settings:
        nearest = min(settings, key=lambda each: each.batch_ms / each.row.batch)
    stages = manifest.config.two_stage
    return Advice(
        goal=goal,
        setting=best,
        nearest=nearest,
        alpha=None if stages is None else stages.alpha,
        other_alpha=_other_alpha(found, goal) if stages else None,
        rows=found.rows,
        is_calibrated=any(each.top1 is not None for each in settings),
    )


def _worth(setting: Setting) -> tuple[float, float]:
    """Accuracy first, then pictures per second."""
    return -1.0 if setting.top1 is None else setting.top1, setting.row.batch / setting.batch_ms


def _settings(row: Row, manifest: Manifest) -> Iterator[Setting]:
    record = manifest.exit_calibration(row.precision, row.backend)
    if record is None or not row.has_two_stages:
        yield Setting(row, row.own.summary.refined)
        return
    for point in record.curve:
        yield Setting(row, 1 - point.early_exit_fraction, point.eta, point.top1)


def _other_alpha(found: Benchmark, goal: Goal) -> float | None:
    """The largest share of tokens with which the calibrated threshold, unchanged, meets the goal.

    None if the bundle's own share does, or if none below it would.
    """
    config = found.bundle.manifest.config
    refined = [(row, _usual_refined(row, found.bundle.manifest)) for row in found.rows]
    if any(goal.is_met(row.ms_at(share), row.batch) for row, share in refined):
        return None
    tokens = config.num_coarse_tokens
    for alpha in (alpha for alpha in _ALPHAS if alpha < config.stages.alpha):
        if not replace(config.stages, alpha=alpha).num_targets(tokens):
            break
        scale = _refine_macs(config.replace(alpha=alpha)) / _refine_macs(config)
        if any(goal.is_met(row.ms_at(share * scale), row.batch) for row, share in refined):
            return alpha
    return None


def _usual_refined(row: Row, manifest: Manifest) -> float:
    """Share refined at the calibrated threshold, or else as measured."""
    record = manifest.exit_calibration(row.precision, row.backend)
    return row.own.summary.refined if record is None else 1 - record.early_exit_fraction


def _refine_macs(config: ModelConfig) -> int:
    return graph_macs(config, "graph")["refine"]
