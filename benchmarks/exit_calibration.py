"""Measure whether an exit threshold holds on pictures it was not calibrated on.

DATA is split in two halves at random, several times. Each goal is calibrated on one half and
measured on the other. INT8 graphs, if the bundle has any, are measured with the threshold of FP32
and with their own. stdout gets a table, the JSON file gets everything.

Example:
  python -m benchmarks.exit_calibration BUNDLE val.zip --class-names classes.json -o out.json
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import sacvit_deploy
from sacvit_deploy.bundle import Bundle
from sacvit_deploy.errors import GoalError
from sacvit_deploy.evaluation.answers import StageAnswers, collect_answers
from sacvit_deploy.evaluation.class_names import read_class_names
from sacvit_deploy.evaluation.exit_threshold import (
    Calibration,
    ExitGoal,
    ThresholdSearch,
    find_threshold,
    measure_threshold,
)
from sacvit_deploy.families.config import mean_macs_g
from sacvit_deploy.families.vit import dense_macs
from sacvit_deploy.samples import read_samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.families.config import ModelConfig
    from sacvit_deploy.spec import Precision

    Halves = tuple[NDArray[np.int64], NDArray[np.int64]]

_SHARE_OF_DENSE = 0.38  # what the paper spends for the accuracy of the dense network
_RESAMPLES = 1000
# Title, key and format of each column of the table.
_COLUMNS = (
    ("goal", "goal", ""),
    ("graphs", "precision", ""),
    ("eta of", "eta_from", ""),
    ("can be met", "met", ".0%"),
    ("eta", "eta", ".3f"),
    ("reached", "reached", ".4f"),
    ("on the other half", "held_out", ".4f"),
    ("top-1 there", "top1", ".1%"),
    ("G there", "macs_mean_g", ".4f"),
    ("holds", "holds", ".0%"),
    ("holds within 95 %", "holds_within", ".0%"),
    ("inside the interval", "inside", ".0%"),
)
_MEANS = tuple(name for _, name, _ in _COLUMNS[4:])


@dataclass(frozen=True)
class Trial:
    """One goal on one split.

    Attributes:
        goal: Goal, in words.
        precision: Precision of the measured graphs.
        eta_from: Precision the threshold was calibrated in.
        seed: Seed of the split.
        met: Whether a threshold meets the goal on the first half; the rest is None if not.
        eta: Exit threshold.
        reached: Limited quantity on the half it was calibrated on.
        held_out: Limited quantity on the other half.
        top1: Top-1 on the other half.
        macs_mean_g: Mean cost on the other half, in 1e9 multiply-accumulates.
        holds: Whether the other half meets the goal outright.
        holds_within: Whether its 95 % interval reaches the goal.
        inside: Whether `held_out` lies in the interval of the first half.
    """

    goal: str
    precision: str
    eta_from: str
    seed: int
    met: bool
    eta: float | None = None
    reached: float | None = None
    held_out: float | None = None
    top1: float | None = None
    macs_mean_g: float | None = None
    holds: bool | None = None
    holds_within: bool | None = None
    inside: bool | None = None


def main() -> None:
    """Measure, print the table, write the document."""
    options = _options()
    bundle = Bundle.open(options.bundle)
    config = bundle.manifest.config
    answers = {p: _answers(options, p) for p in _precisions(bundle)}
    goals = _goals(config, answers["fp32"], options.dense_top1)
    trials = [t for seed in range(options.splits) for t in _split(answers, config, goals, seed)]
    rows = _rows(trials)
    print(_table(rows))
    if options.output:
        document = {
            "bundle": options.bundle.name,
            "data_sha256": answers["fp32"].data_sha256,
            "images": len(answers["fp32"].names),
            "splits": options.splits,
            "python": platform.python_version(),
            "whole": {p: _whole(a) for p, a in answers.items()},
            "rows": rows,
            "trials": [asdict(trial) for trial in trials],
        }
        options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path, help="labelled pictures that were not trained on")
    parser.add_argument("--class-names", type=Path, help="names of the classes in the data")
    parser.add_argument(
        "--dense-top1",
        type=float,
        help="top-1 of a dense network; adds the goal to lose nothing against it",
    )
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


def _precisions(bundle: Bundle) -> list[Precision]:
    there = {graph.precision for graph in bundle.manifest.graphs}
    return ["fp32", "int8"] if "int8" in there else ["fp32"]


def _answers(options: argparse.Namespace, precision: Precision) -> StageAnswers:
    pipeline = sacvit_deploy.load(
        options.bundle, backend="onnxruntime", precision=precision, threads=options.threads
    )
    names = read_class_names(options.class_names) if options.class_names else None
    return collect_answers(pipeline, read_samples(options.data), names)


def _goals(config: ModelConfig, answers: StageAnswers, dense_top1: float | None) -> list[ExitGoal]:
    """Make one or more goals of every kind."""
    middle = (mean_macs_g(config, 0.0) + mean_macs_g(config, 1.0)) / 2
    latency = float(answers.early_ms.mean() + answers.refine_ms.mean() / 2)
    goals = [ExitGoal(value=drop) for drop in (0.005, 0.01, 0.02)]
    if dense_top1 is not None:
        goals.append(ExitGoal(value=0.0, reference_top1=dense_top1))
    return [
        *goals,
        ExitGoal("target_macs", _SHARE_OF_DENSE * dense_macs(config) / 1e9),
        ExitGoal("target_macs", middle),
        ExitGoal("target_exit_fraction", 0.6),
        ExitGoal("target_latency_ms", latency),
    ]


def _split(
    answers: Mapping[Precision, StageAnswers],
    config: ModelConfig,
    goals: Sequence[ExitGoal],
    seed: int,
) -> Iterator[Trial]:
    order = np.random.default_rng(seed).permutation(len(answers["fp32"].samples))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    for goal in goals:
        search = ThresholdSearch(goal, seed=seed, resamples=_RESAMPLES)
        found = {p: _found(_taken(a, halves[0]), config, search) for p, a in answers.items()}
        for precision, eta_from in _pairs(answers):
            trial = Trial(str(goal), precision, eta_from, seed, met=False)
            calibrated = found[eta_from]
            if calibrated:
                other = _taken(answers[precision], halves[1])
                measured = measure_threshold(other, config, calibrated, search)
                trial = _judged(trial, calibrated, measured)
            yield trial


def _pairs(answers: Mapping[Precision, StageAnswers]) -> list[tuple[Precision, Precision]]:
    """List the measured precision and the precision of its threshold."""
    if "int8" not in answers:
        return [("fp32", "fp32")]
    return [("fp32", "fp32"), ("int8", "fp32"), ("int8", "int8")]


def _found(
    answers: StageAnswers, config: ModelConfig, search: ThresholdSearch
) -> Calibration | None:
    try:
        return find_threshold(answers, config, search)
    except GoalError:
        return None


def _judged(trial: Trial, found: Calibration, measured: Calibration) -> Trial:
    goal, ends = found.goal, measured.intervals["goal"]
    low, high = found.intervals["goal"]
    return replace(
        trial,
        met=True,
        eta=found.chosen.eta,
        reached=found.reached,
        held_out=measured.reached,
        top1=measured.chosen.top1,
        macs_mean_g=measured.chosen.macs_mean_g,
        holds=goal.is_met(measured.reached),
        holds_within=any(goal.is_met(end) for end in ends),
        inside=low <= measured.reached <= high,
    )


def _taken(answers: StageAnswers, rows: NDArray[np.int64]) -> StageAnswers:
    """Select pictures by row."""
    return replace(
        answers,
        decisions=answers.decisions.taken(rows),
        class_index=answers.class_index[rows],
        samples=tuple(answers.samples[row] for row in rows),
        early_ms=answers.early_ms[rows],
        refine_ms=answers.refine_ms[rows],
    )


def _whole(answers: StageAnswers) -> dict[str, float]:
    decisions, truth = answers.decisions, answers.class_index
    return {
        "top1_early_exit_only": float((decisions.early_logits.argmax(1) == truth).mean()),
        "top1_refine_only": float((decisions.refined_logits.argmax(1) == truth).mean()),
    }


def _rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Compute shares and means over the splits, for each goal and pair of precisions."""
    rows = []
    for key in dict.fromkeys((t.goal, t.precision, t.eta_from) for t in trials):
        same = [t for t in trials if (t.goal, t.precision, t.eta_from) == key]
        met = [t for t in same if t.met]
        row: dict[str, Any] = dict(zip(("goal", "precision", "eta_from"), key, strict=True))
        row |= {"splits": len(same), "met": len(met) / len(same)}
        rows.append(row | {n: float(np.mean([getattr(t, n) for t in met])) for n in _MEANS if met})
    return rows


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    titles = " | ".join(title for title, _, _ in _COLUMNS)
    lines = [f"| {titles} |", "|" + "---|" * len(_COLUMNS)]
    for row in rows:
        cells = (format(row[n], form) if n in row else "-" for _, n, form in _COLUMNS)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
