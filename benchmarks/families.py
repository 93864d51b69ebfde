"""Accuracy, cost and time of networks of several families on the same pictures.

Every bundle is evaluated in ONNX Runtime, then all are timed in turns in one process. Each is
named after its folder. A network of two stages gives a curve: its time at a threshold is that of
the first stage, and of the second for the share that is refined.

Example:
  python -m benchmarks.families val.zip demo SAC-ViT STViT "SViT, exact" -o families
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy.benchmark.networks import Choice, open_network
from sacvit_deploy.benchmark.timing import CallTime, Effort, TimedNetwork, in_turn, summarize
from sacvit_deploy.bundle import Bundle
from sacvit_deploy.engines.machine import device_name
from sacvit_deploy.evaluation.evaluate import Evaluation, EvaluationRequest, run_evaluation
from sacvit_deploy.libraries import versions
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.samples import read_samples
from sacvit_deploy.visualize.canvas import Pen
from sacvit_deploy.visualize.plot import Axis, Mark, Plot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from sacvit_deploy.visualize.canvas import Role

_COLOURS: tuple[Role, ...] = ("early", "late", "other")
_BATCHES = (1, 8)
_PICTURES = 64  # of which the times are the mean
_ALLOWED_DROP = 0.005
_CHOICE = Choice("onnxruntime", "fp32", 1)


@dataclass(frozen=True)
class Point:
    """A network at one exit threshold.

    Attributes:
        eta: The threshold; 1 for a network of one stage.
        refined: Share of the pictures that is refined.
        top1: Share of right answers.
        macs_g: Mean cost of a picture, in 10⁹ multiply-accumulates.
        ms: Time of a picture in milliseconds, by batch size.
    """

    eta: float
    refined: float
    top1: float
    macs_g: float
    ms: dict[int, float]


def curve(found: Evaluation, times: dict[int, dict[str, float]]) -> list[Point]:
    """Join the accuracy at every threshold with the time at it.

    Args:
        found: The evaluation of a network.
        times: Milliseconds of a picture in each graph, by batch size.
    """
    points = []
    for each in found.curve:
        refined = 1 - each.early_exit_fraction
        ms = {}
        for batch, of_graph in times.items():
            first, *second = of_graph.values()
            ms[batch] = first + refined * sum(second)
        points.append(Point(each.eta, refined, each.top1, each.macs_mean_g, ms))
    return points


def good_point(points: Sequence[Point]) -> Point:
    """The cheapest point that loses at most half a point of the accuracy of the last."""
    good = (point for point in points if point.top1 >= points[-1].top1 - _ALLOWED_DROP)
    return min(good, key=lambda point: point.macs_g)


def graph_times(
    bundles: Sequence[Bundle], data: Path, batch: int, seconds: float
) -> list[dict[str, float]]:
    """Time every graph of all networks in turns, on one thread, in CPU time.

    Every picture goes through both stages.

    Returns:
        For each network, milliseconds of a picture in each graph.
    """
    clock = time.process_time
    samples = read_samples(data).samples
    samples = samples[:: max(1, len(samples) // _PICTURES)][:_PICTURES]
    with ExitStack() as stack:
        work: dict[str, Callable[[int], CallTime]] = {}
        for number, bundle in enumerate(bundles):
            network = open_network(bundle, _CHOICE, clock)
            stack.callback(network.close)
            prepare = Preprocessor(bundle.manifest.preprocessing, bundle.manifest.input_kind)
            images = np.stack([prepare(sample) for sample in samples])
            work[str(number)] = _batches(network.timed, images, batch)
        rounds = in_turn(work, _PICTURES // batch, Effort(seconds, least=5))
    return [
        {role: ms / batch for role, ms in summarize(calls, batch).graphs_p50.items()}
        for calls in rounds.values()
    ]


def _batches(timed: TimedNetwork, images: NDArray[Any], batch: int) -> Callable[[int], CallTime]:
    return lambda index: timed.run(images[index * batch : (index + 1) * batch], 1.0)


def chart(names: Sequence[str], curves: Sequence[Sequence[Point]], batch: int, images: int) -> Plot:
    """A curve for each network of two stages, a point for each of one stage."""
    points = [point for each in curves for point in each]
    title = f"Top-1 against time of a picture, ONNX Runtime FP32, batch {batch}"
    top1 = sum(point.top1 for point in points) / len(points)
    error = (top1 * (1 - top1) / images) ** 0.5
    heading = f"{images} pictures that were not trained on; standard error {100 * error:.1f} points"
    plot = Plot(
        Axis.around("ms of one thread", [point.ms[batch] for point in points]),
        Axis.around("top-1 accuracy", [point.top1 for point in points], percent=True),
        title,
        (title, heading),
    )
    colours = iter(_COLOURS * len(names))
    for name, each in zip(names, curves, strict=True):
        colour: Role = "ink"
        if len(each) > 1:
            colour = next(colours)
            plot.line([(point.ms[batch], point.top1) for point in each], Pen(colour, 2.5))
        last = good_point(each)
        plot.dot((last.ms[batch], last.top1), colour, Mark(name))
    return plot


def main() -> None:
    """Measure, print the table, and write it with the plots."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="labelled pictures")
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--class-names", type=Path, help="names of the data's classes")
    parser.add_argument("--seconds", type=float, default=60, help="for each batch size")
    parser.add_argument("-o", "--output", type=Path, required=True, help="writes .json and .svg")
    chosen = parser.parse_args()
    bundles = [Bundle.open(folder) for folder in chosen.bundles]
    names = [folder.name for folder in chosen.bundles]
    found = [
        run_evaluation(
            EvaluationRequest(
                bundle.path,
                chosen.data,
                class_names=chosen.class_names,
                backend=_CHOICE.backend,
                precision=_CHOICE.precision,
            )
        )
        for bundle in bundles
    ]
    times = {batch: graph_times(bundles, chosen.data, batch, chosen.seconds) for batch in _BATCHES}
    curves = [
        curve(each, {batch: times[batch][number] for batch in _BATCHES})
        for number, each in enumerate(found)
    ]
    _write(chosen.output, names, found, curves)
    for batch in _BATCHES:
        picture = chosen.output.with_name(f"{chosen.output.name}_batch{batch}.svg")
        chart(names, curves, batch, found[0].images).save(picture)
    _print_table(names, curves)


def _write(
    output: Path, names: Sequence[str], found: Sequence[Evaluation], curves: Sequence[list[Point]]
) -> None:
    rows = [
        {
            "network": name,
            "images": each.images,
            "data_sha256": each.data_sha256,
            "curve": [asdict(point) for point in points],
        }
        for name, each, points in zip(names, found, curves, strict=True)
    ]
    document = {
        "tools": versions("onnxruntime", "numpy"),
        "cpu": device_name("CPUExecutionProvider"),
        "rows": rows,
    }
    output.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _print_table(names: Sequence[str], curves: Sequence[list[Point]]) -> None:
    baseline = curves[0][-1]
    print("| Network | Top-1 | G | ms at batch 1 | ms at batch 8 |")
    print("|---|---|---|---|---|")
    for name, points in zip(names, curves, strict=True):
        point = good_point(points)
        ms = " | ".join(f"{t:.2f} ({baseline.ms[b] / t:.2f}x)" for b, t in point.ms.items())
        print(f"| {name} | {100 * point.top1:.1f} % | {point.macs_g:.3f} | {ms} |")


if __name__ == "__main__":
    main()
