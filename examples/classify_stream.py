"""Classify a stream of frames; hard frames of several batches are refined together.

A window that moves over one picture replaces the camera:
    python examples/classify_stream.py bundle cat.jpg --frames 64
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

import sacvit_deploy


def camera(picture: str, count: int) -> Iterator[np.ndarray]:
    """Yield frames as a camera does: HWC uint8 arrays in RGB order.

    OpenCV's frames are BGR: give `channels="bgr"` to the stream.
    """
    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    height, width = (max(1, side * 3 // 4) for side in pixels.shape[:2])
    for index in range(count):
        left = index * (pixels.shape[1] - width) // max(1, count - 1)
        yield pixels[:height, left : left + width]


def main() -> None:
    """Print one line per frame and, at the end, the number of early exits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("picture")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--eta", type=float, help="exit threshold; default: the bundle's")
    arguments = parser.parse_args()

    pipeline = sacvit_deploy.load(arguments.bundle, eta=arguments.eta)
    frames = camera(arguments.picture, arguments.frames)
    early = 0
    start = time.perf_counter()
    for number, result in enumerate(pipeline.stream(frames)):
        early += result.stage == "early_exit"
        print(f"frame {number:3}  {result.label}  {result.probability:.1%}  {result.stage}")
    seconds = time.perf_counter() - start
    print(f"{early} of {arguments.frames} frames exited early; {seconds:.2f} s in all")


if __name__ == "__main__":
    main()
