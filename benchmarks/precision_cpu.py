"""Compare FP32 with a lower precision on this CPU, in ONNX Runtime. Prints JSON.

Both run in one process, in turns, so that other load on the machine affects both alike.

Example:
  python benchmarks/precision_cpu.py --data val.zip --batch 8 --sac-fraction 0.235 -o result.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from sacvit_deploy.bundle import Bundle
from sacvit_deploy.engines.registry import open_sessions
from sacvit_deploy.engines.session import SessionOptions
from sacvit_deploy.exporters.export import ExportOptions, export_bundle
from sacvit_deploy.exporters.precision import PrecisionRequest
from sacvit_deploy.families.config import preset
from sacvit_deploy.runtime.algorithm import confidence
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.runtime.scheduler import FixedExit, Scheduler
from sacvit_deploy.samples import read_samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PICTURES_OF_CALIBRATION = 64


def main() -> None:
    """Measure, print and write the document."""
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Bundle.open(options.bundle) if options.bundle else _exported(options, scratch)
        rows = [row for batch in options.batch for row in _rows(bundle, batch, options)]
    text = json.dumps({**_machine(options.threads), "rows": rows}, indent=2)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="labelled pictures")
    parser.add_argument(
        "--bundle", type=Path, help="bundle with that precision; default: export --preset"
    )
    parser.add_argument("--preset", default="sac_deit_small_patch16_224")
    parser.add_argument("--precision", choices=["fp16", "int8"], default="int8")
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--sac-fraction", type=float, default=0.235)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


def _exported(options: argparse.Namespace, scratch: str) -> Bundle:
    """Random weights: their arithmetic takes as long as that of trained ones."""
    request = PrecisionRequest(options.precision, options.data, samples=_PICTURES_OF_CALIBRATION)
    choices = ExportOptions(preset(options.preset), precisions=(request,))
    return export_bundle(None, Path(scratch) / "b", choices)


def _rows(bundle: Bundle, batch: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    names = ("fp32", options.precision)
    images = _images(bundle, options.data, batch)
    schedulers = {name: _scheduler(bundle, name, options.threads) for name in names}
    etas = {name: _eta(s, images, options.sac_fraction) for name, s in schedulers.items()}
    times: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(options.rounds + 1):
        for name, scheduler in schedulers.items():
            found = _timed(scheduler, images, etas[name])
            if number:  # the first is warm-up
                for what, milliseconds in found.items():
                    times[name].setdefault(what, []).append(milliseconds)
    p50 = {n: {what: statistics.median(v) for what, v in t.items()} for n, t in times.items()}
    return [
        {
            "batch": batch,
            "precision": name,
            "rounds": options.rounds,
            "sac_fraction": round(options.sac_fraction * batch) / batch,
            **{what: round(value, 2) for what, value in p50[name].items()},
            "two_stage_ms_min": round(min(times[name]["two_stage_ms_p50"]), 2),
            **{
                f"{what.removesuffix('_ms_p50')}_speedup": round(p50["fp32"][what] / value, 3)
                for what, value in p50[name].items()
            },
        }
        for name in names
    ]


def _images(bundle: Bundle, data: Path, batch: int) -> NDArray[Any]:
    manifest = bundle.manifest
    preprocessor = Preprocessor(manifest.preprocessing, manifest.input_kind)
    samples = read_samples(data).samples
    return np.stack([preprocessor(sample) for sample in samples[:: len(samples) // batch][:batch]])


def _scheduler(bundle: Bundle, precision: Any, threads: int) -> Scheduler:
    opened = open_sessions(
        bundle,
        backend="onnxruntime",
        precision=precision,
        options=SessionOptions(providers=("CPU",), threads=threads),
    )
    return Scheduler(bundle.manifest.config, opened.sessions, bundle.manifest.selection)


def _eta(scheduler: Scheduler, images: NDArray[Any], sac_fraction: float) -> float:
    """Find the threshold that sends that share of the images to the second stage."""
    logits = np.stack([outcome.logits for outcome in scheduler.run(images, FixedExit(0.0))])
    ascending = np.sort(confidence(logits))
    going_on = round(sac_fraction * len(images))
    edges = np.concatenate([[0.0], ascending, [1.0]])
    return float((edges[going_on] + edges[going_on + 1]) / 2)


def _timed(scheduler: Scheduler, images: NDArray[Any], eta: float) -> dict[str, float]:
    outcomes = scheduler.run(images, FixedExit(eta))
    early_ms = sum(outcome.early_ms for outcome in outcomes)
    refine_ms = sum(outcome.refine_ms for outcome in outcomes)
    return {
        "early_exit_ms_p50": early_ms,
        "refine_ms_p50": refine_ms,
        "two_stage_ms_p50": early_ms + refine_ms,
    }


def _machine(threads: int) -> dict[str, Any]:
    return {
        "device": _processor(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 1),
        "runtime": "onnxruntime",
        "versions": {
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _processor() -> str:
    """Name the CPU, and its vector instructions that matter for INT8."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return platform.processor() or platform.machine()
    text = file.read_text(encoding="utf-8")
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    known = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8")
    flags = [flag for flag in known if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(flags) or 'no AVX2'})"


if __name__ == "__main__":
    main()
