"""Compare streams with calls: files read ahead, and hard pictures refined together. Prints JSON.

`files` is a stream of PICTURES against one call after another. `arrays` is a stream at batch 8
against calls at batch 8, with pictures in memory and an imposed share that is refined. Both ways
take turns in one process, and their answers are compared. Only the stream has `--workers`; each of
the two has the whole machine, unless `--threads` says otherwise.

Example:
  taskset -c 0,1 python benchmarks/streams.py photographs/*.jpg --workers 2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sacvit_deploy import demo_bundle
from sacvit_deploy.libraries import own_versions, versions
from sacvit_deploy.runtime.load import load
from sacvit_deploy.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sacvit_deploy.runtime.result import Result

_BATCH = 8


def main() -> None:
    """Measure and print the document."""
    options = _options()
    with _opened(options) as pipeline, _opened(options, options.workers) as streaming:
        document = {
            "device": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "versions": own_versions() | versions(pipeline.backend, "numpy"),
            "backend": pipeline.backend,
            "precision": pipeline.precision,
            "threads": options.threads,
            "workers": options.workers,
            "load": os.getloadavg()[0],
            "rows": [_arrays(pipeline, streaming, options)],
        }
        if options.pictures:
            document["rows"].append(_files(pipeline, streaming, options))
    print(json.dumps(document, indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--bundle", type=Path, default=demo_bundle())
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", choices=["fp32", "fp16", "int8"])
    parser.add_argument("--threads", type=int, help="CPU threads of one operator")
    parser.add_argument("--workers", type=int, default=1, help="batches at once in the stream")
    parser.add_argument("--share", type=float, default=0.1, help="share of the arrays refined")
    parser.add_argument("--count", type=int, default=160, help="pictures in each turn")
    parser.add_argument("--turns", type=int, default=7)
    return parser.parse_args()


def _opened(options: argparse.Namespace, workers: int = 1) -> Pipeline:
    return load(
        options.bundle,
        backend=options.backend,
        precision=options.precision,
        threads=options.threads,
        workers=workers,
    )


def _files(pipeline: Pipeline, streaming: Pipeline, options: argparse.Namespace) -> dict[str, Any]:
    paths = (options.pictures * options.count)[: options.count]
    return {"what": "files"} | _compared(
        lambda: [pipeline(path) for path in paths],
        lambda: list(streaming.stream(paths)),
        options,
    )


def _arrays(pipeline: Pipeline, streaming: Pipeline, options: argparse.Namespace) -> dict[str, Any]:
    size = (*pipeline.preprocess.spec.crop, 3)
    generator = np.random.default_rng(0)
    frames = list(generator.integers(0, 256, (options.count, *size), dtype=np.uint8))
    sure = [result.early_exit_probability for result in pipeline(frames, eta=0)]
    eta = float(np.quantile(np.array(sure), options.share))
    starts = range(0, len(frames), _BATCH)
    return {"what": "arrays", "batch": _BATCH, "sac_fraction": options.share} | _compared(
        lambda: [r for at in starts for r in pipeline(frames[at : at + _BATCH], eta=eta)],
        lambda: list(streaming.stream(frames, eta=eta, batch_size=_BATCH)),
        options,
    )


def _compared(
    calls: Callable[[], Sequence[Result]],
    stream: Callable[[], Sequence[Result]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Time both in turns, by the clock on the wall; the first turn warms up."""
    times: dict[str, list[float]] = {"calls": [], "stream": []}
    cpu: dict[str, list[float]] = {"calls": [], "stream": []}
    same = True
    for _ in range(options.turns + 1):
        found = {}
        for way, run in (("calls", calls), ("stream", stream)):
            start, start_cpu = time.perf_counter(), time.process_time()
            found[way] = [(r.class_index, r.stage, r.target_tokens) for r in run()]
            times[way].append(time.perf_counter() - start)
            cpu[way].append((time.process_time() - start_cpu) * 1e3 / options.count)
        same &= found["calls"] == found["stream"]
    rates = {way: options.count / statistics.median(values[1:]) for way, values in times.items()}
    ratios = [a / b for a, b in zip(times["calls"][1:], times["stream"][1:], strict=True)]
    return {
        "calls_images_per_s": round(rates["calls"], 1),
        "stream_images_per_s": round(rates["stream"], 1),
        **{f"{way}_cpu_ms_p50": round(statistics.median(ms[1:]), 2) for way, ms in cpu.items()},
        "speedup_p50": round(statistics.median(ratios), 3),
        "same_answers": same,
    }


if __name__ == "__main__":
    main()
