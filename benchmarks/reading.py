"""Measure what `decode="fast"` saves in reading pictures, and what it changes. Prints JSON.

Pictures are read and prepared by one thread both ways, in turns, in CPU time. Decisions are those
of BUNDLE for the labelled pictures of DATA, each enlarged to a JPEG of --side pixels, with the
noise of a camera.

Example:
  python benchmarks/reading.py photographs/*.jpg --crop 224 --data val.zip --bundle demo
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from PIL import __version__ as pillow_version

from sacvit_deploy import demo_bundle
from sacvit_deploy.runtime.load import load
from sacvit_deploy.runtime.pictures import read_picture
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.samples import read_samples
from sacvit_deploy.spec import Preprocessing

_NOISE = 3.0


def main() -> None:
    """Measure and print the document."""
    options = _options()
    document: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "versions": {"python": platform.python_version(), "pillow": pillow_version},
        "rows": [reading_row(path, options) for path in options.pictures],
    }
    if options.data:
        document["decisions"] = decisions(options)
    print(json.dumps(document, indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--crop", type=int, default=224, help="side of the network's input")
    parser.add_argument("--crop-ratio", type=float, default=0.875)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--data", type=Path, help="labelled pictures to compare decisions on")
    parser.add_argument("--bundle", type=Path, help="default: the demo network")
    parser.add_argument("--side", type=int, default=1080, help="shorter side of enlarged pictures")
    parser.add_argument("--limit", type=int, help="number of pictures of the data; default: all")
    return parser.parse_args()


def reading_row(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time both ways in turns, and compare their pixels."""
    spec = Preprocessing((options.crop, options.crop), options.crop_ratio)
    ways = {way: Preprocessor(spec, "float", way) for way in ("exact", "fast")}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.repeats):
        for way, prepare in ways.items():
            start = time.process_time()
            prepare(path)
            times[way].append((time.process_time() - start) * 1e3)
    medians = {way: statistics.median(values) for way, values in times.items()}
    exact, fast = (Preprocessor(spec, "uint8", way)(path).astype(int) for way in ("exact", "fast"))
    found = np.abs(exact - fast)
    return {
        "picture": path.name,
        "size": read_picture(path).size,
        "bytes": os.path.getsize(path),
        "exact_ms_p50": round(medians["exact"], 2),
        "fast_ms_p50": round(medians["fast"], 2),
        "speedup": round(medians["exact"] / medians["fast"], 2),
        "max_difference": int(found.max()),
        "mean_difference": round(float(found.mean()), 3),
    }


def decisions(options: argparse.Namespace) -> dict[str, Any]:
    """Classify enlarged pictures both ways, and count the decisions that differ."""
    samples = read_samples(options.data).samples[: options.limit]
    generator = np.random.default_rng(0)
    flips, labels, differences = 0, 0, []
    with (
        TemporaryDirectory() as scratch,
        load(options.bundle or demo_bundle(), threads=1, decode="exact") as pipeline,
    ):
        spec, kind = pipeline.preprocess.spec, pipeline.preprocess.input_kind
        fast = Preprocessor(spec, kind, "fast")
        for sample in samples:
            path = Path(scratch, "enlarged.jpg")
            _enlarged(read_picture(sample), options.side, generator).save(path, quality=90)
            images = np.stack([pipeline.preprocess(path), fast(path)])
            exact_outcome, fast_outcome = pipeline.outcomes(images)
            flips += exact_outcome.stage != fast_outcome.stage
            labels += int(exact_outcome.logits.argmax() != fast_outcome.logits.argmax())
            one, other = exact_outcome.early_exit_confidence, fast_outcome.early_exit_confidence
            if one is not None and other is not None:
                differences.append(abs(one - other))
        return {
            "pictures": len(samples),
            "side": options.side,
            "eta": pipeline.eta,
            "exits_flipped": flips,
            "labels_changed": labels,
            "confidence_mean_difference": round(float(np.mean(differences)), 5),
        }


def _enlarged(picture: Image.Image, side: int, generator: np.random.Generator) -> Image.Image:
    factor = side / min(picture.size)
    size = round(picture.width * factor), round(picture.height * factor)
    pixels = np.asarray(picture.resize(size, Image.Resampling.LANCZOS), np.float32)
    noisy = pixels + _NOISE * generator.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
