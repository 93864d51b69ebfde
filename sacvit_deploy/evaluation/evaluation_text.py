"""An evaluation in words, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sacvit_deploy.evaluation.evaluate import Evaluation
    from sacvit_deploy.evaluation.operating_point import Latency, OperatingPoint

_NOTES = {
    "bundle": "default of the bundle",
    "calibrated": "calibrated for this precision",
    "fp32": "the threshold of fp32",
}


def evaluation_lines(evaluation: Evaluation) -> Iterator[str]:
    """What was measured, a line for each threshold, and what does not depend on it.

    Yields:
        Lines for a person; the columns line up.
    """
    setting = evaluation.setting
    yield (
        f"{evaluation.images} pictures of {setting.data}; {setting.bundle} in {setting.precision}, "
        f"{setting.runtime} on {setting.device}"
    )
    yield f"{'eta':>6}  {'top-1':>6}  {'early':>6}  {'G MACs':>7}  {'of dense':>8}  ms p50 / p95"
    for row in evaluation.rows:
        yield _line(row, evaluation.macs_g["dense"])
    if evaluation.late_path is not None:
        yield (
            f"early exit alone {evaluation.top1_early_exit_only:.1%}, "
            f"{_path(evaluation.early_path)}; second stage alone "
            f"{evaluation.top1_refine_only:.1%}, {_path(evaluation.late_path)}"
        )
    yield f"calibration error of the confidence {evaluation.reliability.ece:.1%}"
    if evaluation.skipped:
        yield f"pictures that could not be read: {len(evaluation.skipped)}"


def _line(row: OperatingPoint, dense: float) -> str:
    eta = "-" if row.exit is None else f"{row.exit.eta:.4g}"
    early = "-" if row.early_exit_fraction is None else f"{row.early_exit_fraction:.1%}"
    note = _NOTES.get(row.exit.source, "") if row.exit else ""
    latency = f"{row.latency.p50:.1f} / {row.latency.p95:.1f}"
    line = (
        f"{eta:>6}  {row.top1:6.1%}  {early:>6}  {row.macs_mean_g:7.3f}  "
        f"{row.macs_mean_g / dense:8.0%}  {latency:<12}  {note}"
    )
    return line.rstrip()


def _path(latency: Latency) -> str:
    return f"{latency.p50:.1f} ms"
