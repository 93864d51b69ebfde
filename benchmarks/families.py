"""Accuracy against cost of networks of several families, trained alike, on the same pictures.

Each checkpoint is exported and evaluated in ONNX Runtime, every picture in both stages.

Example:
  python -m benchmarks.families sac.safetensors cf.safetensors lf.safetensors val.zip -o families
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sacvit_deploy.evaluation.evaluate import Evaluation, EvaluationRequest, run_evaluation
from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.families import family_named
from sacvit_deploy.libraries import versions
from sacvit_deploy.samples import read_samples
from sacvit_deploy.visualize.canvas import Pen
from sacvit_deploy.visualize.plot import Axis, Mark, Plot

if TYPE_CHECKING:
    from sacvit_deploy.evaluation.exit_sweep import OperatingPoint
    from sacvit_deploy.visualize.canvas import Role

_COLOURS: tuple[Role, ...] = ("early", "late", "other", "wrong")
_ALLOWED_DROP = 0.005
_TITLE = "Top-1 against mean cost of a picture, at every exit threshold"


def evaluated(checkpoint: Path, data: Path) -> tuple[str, Evaluation]:
    """Export a checkpoint and evaluate it; returns the title of its family, too."""
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder) / "labels.txt"
        names = sorted({str(sample.label) for sample in read_samples(data).samples})
        labels.write_text("\n".join(names), encoding="utf-8")
        bundle = export_bundle(checkpoint, Path(folder) / "bundle", ExportOptions(labels=labels))
        result = run_evaluation(EvaluationRequest(bundle.path, data, backend="onnxruntime"))
        return family_named(bundle.manifest.config.family).title, result


def row(title: str, checkpoint: Path, found: Evaluation) -> dict[str, Any]:
    """Both ends of the curve, and the cheapest point that is hardly less accurate."""
    first, last = found.curve[0], found.curve[-1]
    good = (point for point in found.curve if point.top1 >= last.top1 - _ALLOWED_DROP)
    cheapest = min(good, key=lambda point: point.macs_mean_g)
    return {
        "family": title,
        "checkpoint": checkpoint.name,
        "first_stage": _point(first),
        "second_stage": _point(last),
        "within_half_a_point": _point(cheapest),
        "curve": [_point(point) for point in found.curve],
        "images": found.images,
        "data_sha256": found.data_sha256,
    }


def _point(point: OperatingPoint) -> dict[str, float]:
    names = ("eta", "top1", "early_exit_fraction", "macs_mean_g")
    return {name: getattr(point, name) for name in names}


def chart(rows: list[dict[str, Any]]) -> Plot:
    """One curve for each family."""
    curves = [[(p["macs_mean_g"], p["top1"]) for p in each["curve"]] for each in rows]
    xs, ys = zip(*(point for curve in curves for point in curve), strict=True)
    cost = Axis.around("mean cost of a picture (G multiply-accumulates)", xs)
    accuracy = Axis.around("top-1 accuracy", ys, percent=True)
    count, top1 = rows[0]["images"], sum(ys) / len(ys)
    error = (top1 * (1 - top1) / count) ** 0.5
    pictures = f"{count} pictures that were not trained on; standard error {100 * error:.1f} points"
    plot = Plot(cost, accuracy, _TITLE, (_TITLE, pictures))
    for number, (each, curve, colour) in enumerate(zip(rows, curves, _COLOURS, strict=False)):
        plot.line(curve, Pen(colour, 2.5))
        plot.dot(curve[-1], colour, Mark(""))
        # A legend where no curve is: low, on the right.
        at = cost.low + (cost.high - cost.low) * (0.4 + 0.2 * number)
        height = accuracy.low + (accuracy.high - accuracy.low) * 0.15
        plot.dot((at, height), colour, Mark(each["family"]))
    return plot


def main() -> None:
    """Measure, print the table, and write it with the plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("data", type=Path, help="labelled pictures; classes in order of the head")
    parser.add_argument("-o", "--output", type=Path, required=True, help="writes .json and .svg")
    chosen = parser.parse_args()
    rows = []
    for file in chosen.checkpoints:
        title, found = evaluated(file, chosen.data)
        rows.append(row(title, file, found))
    tools = versions("torch", "onnxruntime")
    document = {"tools": tools, "rows": rows}
    text = json.dumps(document, indent=2) + "\n"
    chosen.output.with_suffix(".json").write_text(text, encoding="utf-8")
    chart(rows).save(chosen.output.with_suffix(".svg"))
    print("| Network | First stage: top-1, G | Second: top-1, G | Within 0.5 points: top-1, G |")
    print("|---|---|---|---|")
    for each in rows:
        cells = [
            f"{100 * each[name]['top1']:.1f} at {each[name]['macs_mean_g']:.3f}"
            for name in ("first_stage", "second_stage", "within_half_a_point")
        ]
        print(f"| {each['family']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
